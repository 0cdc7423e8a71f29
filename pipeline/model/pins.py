"""Pinned files: every file of a model's folder that loading may read, by its sha256.

transformers reads more of a folder than its configuration and weights: the tokenizer's files and
chat templates, the generation configuration, processors, an index of weights, code. A file with an
ending of :data:`READ` is taken as read, whatever its name; what is known not to be read is listed
as ignored.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from actlas.pipeline.model.filenames import INDEX_FILE, SINGLE_FILE
from actlas.pipeline.model.files import file_sha256
from actlas.store.errors import ModelError
from actlas.store.format.schema import FolderFiles

READ = (
    *("*.json", "*.jinja", "vocab*.txt", "merges*.txt", "dict*.txt", "*.model", "*.model.v*"),
    *("*.spm", "*.codes", "*.bpe"),
    *("*.vocab", "*.tokenizer", "*.tiktoken"),
)
"""Names of files that tokenizers, processors and configurations are read from."""

EXTRA_WEIGHTS = ("head.safetensors", "readout.safetensors")
"""Weights that some classes of transformers read besides the model's (``extra_files``)."""

WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx"),
    *("*.onnx_data", "*.gguf", "*.ggml", "*.ot", "*.npz", "*.tflite", "*.pkl", "*.distcp"),
)
"""Names of weights; only those that the caller names are read."""

NOT_READ = (
    *("*.index.json", "trainer_state.json", "*_results.json", "training_args.*", "modelcard.json"),
    *("README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "requirements*.txt"),
    *("*.md", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.log", "*.lock"),
)
"""Names of files that no loading reads."""

CHAT_TEMPLATES = "additional_chat_templates"
"""The folder of further chat templates, which the tokenizer reads."""


def folder_files(
    folder: Path, identity: str, weights: Collection[Path] = (), *, code: bool = False
) -> FolderFiles:
    """Return which files of a folder loading may read, with their sha256, and which it ignores.

    Parameters
    ----------
    folder : Path
        The folder of a model or a tokenizer.
    identity : str
        Its id in the plan.
    weights : collection of Path
        The weight files that are loaded.
    code : bool
        Whether code in the folder may run. It can then read any file, so that everything but
        other weights and documentation counts as read.
    """
    chosen = {path.name for path in weights}
    if chosen and SINGLE_FILE not in chosen:
        chosen.add(INDEX_FILE)
    read, ignored = {}, []
    for name, path in _listed(folder, code):
        if path.is_file() and _is_read(name, chosen, code):
            read[_shown(name)] = file_sha256(path)
        else:
            ignored.append(_shown(name) + "/" * path.is_dir())
    return FolderFiles(id=identity, read=read, ignored=tuple(ignored))


def _listed(folder: Path, code: bool) -> Iterator[tuple[str, Path]]:
    """Yield the files of a folder, of its chat templates, and with ``code`` of all folders below.

    Other folders are yielded themselves.
    """
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            yield path.name, path
        elif code or path.name == CHAT_TEMPLATES:
            for root, below, names in os.walk(path):
                below[:] = sorted(name for name in below if not name.startswith("."))
                inside = (Path(root, name) for name in sorted(names))
                yield from ((file.relative_to(folder).as_posix(), file) for file in inside)
        else:
            yield path.name, path


def _is_read(path: str, chosen: Collection[str], code: bool) -> bool:
    name = path.rpartition("/")[2]
    if path in chosen or path in EXTRA_WEIGHTS:
        return True
    if name.startswith(".") or _matches(name, (*WEIGHTS, *NOT_READ)):
        return False
    return code or _matches(name, READ)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _shown(name: str) -> str:
    """Return a file's name without characters that could act on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def differences(pinned: FolderFiles, now: FolderFiles) -> list[str]:
    """Return in words how the files of a folder differ from the pinned ones, one per file.

    A folder without any file of a tokenizer or a processor is taken as the weights alone: a run
    reads none of those files.

    Parameters
    ----------
    pinned : FolderFiles
        The files of the planned folder.
    now : FolderFiles
        The files of the folder that is about to be loaded.
    """
    asked = pinned.read
    if not any(map(_of_tokenizer, now.read)):
        asked = {name: sha for name, sha in asked.items() if not _of_tokenizer(name)}
    changed = [
        f"{name} {'is missing' if name not in now.read else 'was changed'}"
        for name, sha in sorted(asked.items())
        if now.read.get(name) != sha
    ]
    new = sorted(now.read.keys() - pinned.read.keys() - set(pinned.ignored))
    return [*changed, *(f"{name} was not there" for name in new)]


def without_weights(pinned: FolderFiles) -> FolderFiles:
    """Return the files of a folder without its weights, which take long to hash.

    Parameters
    ----------
    pinned : FolderFiles
        The files of the planned folder.
    """
    weights = [name for name in pinned.read if _matches(name, ("*.safetensors", INDEX_FILE))]
    read = {name: sha for name, sha in pinned.read.items() if name not in weights}
    ignored = (*pinned.ignored, *weights)
    return FolderFiles(id=pinned.id, read=read, ignored=ignored)


def _of_tokenizer(name: str) -> bool:
    of_model = ("config*.json", "generation_config.json", INDEX_FILE, "*.safetensors", "*.py")
    return not _matches(name, of_model)


def named(found: Sequence[str]) -> str:
    """Return the first of the differences between two folders, and the number of the others."""
    more = f", and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more


def changed_files(found: Sequence[str], folder: Path) -> ModelError:
    """Return the error for a folder whose files are not those that a store was planned with.

    Parameters
    ----------
    found : sequence of str
        What differs: see :func:`differences`.
    folder : Path
        The folder.
    """
    return ModelError(
        f"{folder} is not the folder that the plan names: since planning, {named(found)}. Put the "
        "original files back, or plan another store for this model.",
        field="model.files",
        files=[text.partition(" ")[0] for text in found],
        path=str(folder),
    )
