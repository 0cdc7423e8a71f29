"""Folders that are no sparse autoencoder in SAELens's format: named for what they are.

Nothing of a foreign folder is read but the names of its files and small JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from actlas.analysis.sae.record import CHECKPOINT_FILE, CONFIG_FILE, OWN_FILE, WEIGHTS_FILE
from actlas.store.errors import SaeError
from actlas.store.objects import leftovers

MAX_JSON_BYTES = 1 << 20

MAX_FOLDERS = 4096
"""Largest number of folders below a folder that are looked into."""

MAX_SHOWN = 5

_CONVERT = (
    f"Load it there and save it in SAELens's format ({CONFIG_FILE}, {WEIGHTS_FILE}): "
    "SAE.save_inference_model(FOLDER)"
)

_FROM_HUB = (
    "SAELens loads published ones by release and id and saves them in its own format "
    f"({CONFIG_FILE}, {WEIGHTS_FILE}): SAE.from_pretrained(RELEASE, ID)"
    ".save_inference_model(FOLDER)"
)

_NO_PICKLE = "actlas never reads pickles, which can run code"


class Folder(NamedTuple):
    """A folder's direct content.

    Attributes
    ----------
    path : Path
        The folder.
    names : frozenset of str
        Names of its files and folders.
    """

    path: Path
    names: frozenset[str]

    @classmethod
    def of(cls, path: Path) -> Folder:
        """Return a folder's content; that of a folder that cannot be listed is empty."""
        try:
            return cls(path, frozenset(child.name for child in path.iterdir()))
        except OSError:
            return cls(path, frozenset())

    def ends_with(self, *suffixes: str) -> list[str]:
        """Return the names that end with one of some suffixes."""
        return sorted(name for name in self.names if name.endswith(suffixes))

    def json(self, name: str) -> dict[str, Any]:
        """Return a small JSON file's object; empty if it is missing or not one."""
        path = self.path / name
        try:
            if name not in self.names or not path.is_file():
                return {}
            if path.stat().st_size > MAX_JSON_BYTES:
                return {}
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}


class Kind(NamedTuple):
    """A kind of foreign folder.

    Attributes
    ----------
    recognizes : callable
        Returns whether a folder is of this kind.
    what : str
        What the folder is.
    remedy : str
        What to do with it.
    """

    recognizes: Callable[[Folder], bool]
    what: str
    remedy: str


def _is_sparsify(folder: Folder) -> bool:
    config = folder.json(CONFIG_FILE)
    return "sae.safetensors" in folder.names or (
        WEIGHTS_FILE not in folder.names
        and {"num_latents", "expansion_factor", "normalize_decoder"} <= config.keys()
    )


def _is_dictionary_learning(folder: Folder) -> bool:
    trainer = folder.json("config.json").get("trainer")
    return "ae.pt" in folder.names or (isinstance(trainer, dict) and "dict_class" in trainer)


def _is_gemma_scope_2(folder: Folder) -> bool:
    config = folder.json("config.json")
    return "params.safetensors" in folder.names or "hf_hook_point_in" in config


def _is_llamascopium(folder: Folder) -> bool:
    config = folder.json("config.json")
    return "sae_type" in config or "sae_weights.dcp" in folder.names


def _is_llama_scope(folder: Folder) -> bool:
    return "hyperparams.json" in folder.names


def _is_cross_layer(folder: Folder) -> bool:
    parts = folder.ends_with(".safetensors")
    return any(name.startswith(("W_enc_", "W_dec_")) for name in parts) or (
        any(name.startswith("layer_") for name in parts)
    )


def _is_training_checkpoint_of_saelens(folder: Folder) -> bool:
    states = {"trainer_state.pt", "activations_store_state.safetensors"}
    return bool(states & folder.names) and WEIGHTS_FILE not in folder.names


def _is_model(folder: Folder) -> bool:
    return {"model_type", "architectures"} & folder.json("config.json").keys() != set()


KINDS: tuple[Kind, ...] = (
    Kind(
        lambda folder: "zarr.json" in folder.names,
        "a store of activations",
        "Give the folder of a sparse autoencoder, such as the --out of `actlas sae train`",
    ),
    Kind(
        lambda folder: "mask.json" in folder.names,
        "the result of `actlas localize`",
        "Give the folder of a sparse autoencoder; a mask belongs to `actlas ablate --mask`",
    ),
    Kind(
        _is_sparsify,
        "an autoencoder of sparsify (EleutherAI), which actlas does not read yet",
        "SAELens converts it: SAE.load_from_disk(DIR, converter=sparsify_disk_loader)"
        ".save_inference_model(FOLDER)",
    ),
    Kind(
        _is_dictionary_learning,
        "an autoencoder of dictionary_learning, which actlas does not read yet (its weights, "
        f"ae.pt, are a pickle: {_NO_PICKLE})",
        _FROM_HUB,
    ),
    Kind(
        lambda folder: "params.npz" in folder.names,
        "an autoencoder of Gemma Scope (params.npz), which actlas does not read yet",
        _FROM_HUB,
    ),
    Kind(
        _is_gemma_scope_2,
        "an autoencoder of Gemma Scope 2 (params.safetensors), which actlas does not read yet",
        _FROM_HUB,
    ),
    Kind(
        _is_llamascopium,
        "an autoencoder of Llamascopium (Language-Model-SAEs), which actlas does not read yet",
        _CONVERT,
    ),
    Kind(
        _is_llama_scope,
        "an autoencoder of Llama Scope (hyperparams.json), which actlas does not read yet",
        _FROM_HUB,
    ),
    Kind(
        _is_cross_layer,
        "a set of transcoders (one file of weights for each layer), which have no feature "
        "activations of one hookpoint's rows alone",
        "Give a sparse autoencoder of one hookpoint",
    ),
    Kind(
        _is_training_checkpoint_of_saelens,
        "a training checkpoint of SAELens",
        "Give the folder that SAELens saved at the end of the training (its output_path)",
    ),
    Kind(
        _is_model,
        "a transformers model, not a sparse autoencoder",
        "Give the folder of a sparse autoencoder, such as the --out of `actlas sae train`",
    ),
    Kind(
        lambda folder: bool(folder.ends_with(".pt", ".pth", ".bin", ".pkl", ".ckpt")),
        f"a folder with pickled weights; {_NO_PICKLE}",
        _CONVERT.replace("Load it there", "Load it in the library that saved it"),
    ),
)
"""The kinds of foreign folders, the first that recognizes a folder counts."""


def raise_if_foreign(folder: Path) -> None:
    """Raise if a folder is known not to be a finished sparse autoencoder in SAELens's format.

    Parameters
    ----------
    folder : Path
        The folder. One that is complete, empty, unknown or missing passes.

    Raises
    ------
    SaeError
        The folder is an unfinished training, another library's, a model, or a folder of several.
    """
    if folder.is_file():
        what = _described(Folder.of(folder.parent))
        where = f"; its folder is {what}" if what is not None else ""
        raise _error(
            folder, f"expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, got a file{where}"
        )
    if not folder.is_dir():
        return
    found = Folder.of(folder)
    if is_unfinished(found.names):
        raise _error(
            folder,
            "a training that is not finished. Run the same `actlas sae train` again with this "
            f"--out: it continues from its last checkpoint ({CHECKPOINT_FILE}) and writes the "
            "sparse autoencoder at its end",
        )
    if {CONFIG_FILE, WEIGHTS_FILE} <= found.names:
        return
    kind = kind_of(found)
    if kind is not None:
        lacks = WEIGHTS_FILE if CONFIG_FILE in found.names else CONFIG_FILE
        raise _error(folder, f"no {lacks} here: this is {kind.what}. {kind.remedy}")
    if not {CONFIG_FILE, WEIGHTS_FILE, OWN_FILE} & found.names and (below := list(_below(folder))):
        more = f" and {len(below) - MAX_SHOWN:,} more" if len(below) > MAX_SHOWN else ""
        raise _error(
            folder,
            f"no {CONFIG_FILE} here; folders below it have autoencoders: "
            f"{', '.join(below[:MAX_SHOWN])}{more}. Give one of them",
        )


def is_unfinished(names: Iterable[str]) -> bool:
    """Return whether a folder with files of these names is a training that is not finished.

    Parameters
    ----------
    names : iterable of str
        The names of the files.
    """
    names = {*names}
    left = f".{CHECKPOINT_FILE}.part"  # of earlier versions
    return CHECKPOINT_FILE in names or (
        WEIGHTS_FILE not in names
        and any(n == left or leftovers.is_temporary(n, Path(CHECKPOINT_FILE)) for n in names)
    )


def kind_of(folder: Folder) -> Kind | None:
    """Return the kind of a foreign folder, or None where it is unknown.

    Parameters
    ----------
    folder : Folder
        The folder.
    """
    return next((kind for kind in KINDS if kind.recognizes(folder)), None)


def _described(folder: Folder) -> str | None:
    if {CONFIG_FILE, WEIGHTS_FILE} <= folder.names:
        return "such a folder"
    kind = kind_of(folder)
    return f"{kind.what}. {kind.remedy}" if kind is not None else None


def _below(folder: Path) -> Iterator[str]:
    """Yield the folders below a folder that look like autoencoders, at most four levels down."""
    level, n_seen = [folder], 0
    for _ in range(4):
        children = [child for each in level for child in _folders_of(each)]
        n_seen += len(children)
        if n_seen > MAX_FOLDERS:
            return
        for child in children:
            inside = Folder.of(child)
            if {CONFIG_FILE, WEIGHTS_FILE} <= inside.names:
                yield str(child.relative_to(folder))
            elif (kind := kind_of(inside)) is not None:
                yield f"{child.relative_to(folder)} ({kind.what.split(',')[0]})"
        level = children


def _folders_of(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError:
        return []


def _error(path: Path, message: str) -> SaeError:
    return SaeError(f"{path}: {message}.", path=str(path))
