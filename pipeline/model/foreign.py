"""Folders that actlas does not compute with, each named for what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actlas.pipeline.model.filenames import ADAPTER_FILE, CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from actlas.store.errors import ModelError

_CODE_FIELDS = frozenset(
    {
        *("attn_implementation", "attn_implementation_internal"),
        *("experts_implementation", "experts_implementation_internal"),
    }
)

_SHARD = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")
"""Names of a distributed checkpoint, which transformers prefers to model.safetensors."""

_CODE_MAPS = (CONFIG_FILE, "tokenizer_config.json", "processor_config.json")

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")

_OTHER_FORMATS = {
    ".gguf": "GGUF (llama.cpp)",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".npz": "numpy",
}


def refuse_unpinned(folder: Path, config: Any, *, code: bool = False) -> None:
    """Refuse a folder from which transformers would load more, or other, than what is pinned.

    Parameters
    ----------
    folder : Path
        The model's folder.
    config : transformers.PreTrainedConfig
        Its configuration.
    code : bool
        Whether code that comes with the model may run.

    Raises
    ------
    ModelError
        It holds an adapter or a distributed checkpoint, or it names other weights, or code of
        another repository.
    """
    if (folder / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{folder} holds {_adapter(folder)}: transformers applies it where peft is installed, "
            "and not elsewhere. Merge it into the weights (merge_and_unload() of peft, then "
            f"save_pretrained(...)), or remove {ADAPTER_FILE} to use the weights without it.",
            path=str(folder),
            file=ADAPTER_FILE,
        )
    shards = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    if shards:
        raise ModelError(
            f"{folder} holds a distributed checkpoint ({shards[0]}), which would be loaded in "
            f"place of {SINGLE_FILE}. Save the model again with model.save_pretrained(...).",
            path=str(folder),
            file=shards[0],
        )
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        raise ModelError(
            f"{folder / CONFIG_FILE}: transformers_weights names {str(named)[:100]!r} as the "
            f"weights. Expected {SINGLE_FILE} or {INDEX_FILE}: rename the file, and remove the "
            "field.",
            path=str(folder),
            field="transformers_weights",
        )
    for name in _CODE_MAPS if code else ():
        for reference in _strings(_json(folder / name).get("auto_map")):
            if "--" in reference:
                raise ModelError(
                    f"{folder / name}: auto_map names code of another repository "
                    f"({reference[:200]}), which may change at any time. Copy its .py files into "
                    "this folder, and write the name without what precedes --.",
                    path=str(folder),
                    field="auto_map",
                )


def refuse_hub_kernels(folder: Path) -> None:
    """Refuse a configuration that names code on the hub to compute with.

    transformers downloads and runs the package that an attention implementation such as
    ``owner/kernel`` names.

    Parameters
    ----------
    folder : Path
        The model's folder.

    Raises
    ------
    ModelError
        A field names such code; the message gives the field.
    """
    # A field of config.json can send transformers to config.VERSION.json. A file that is no JSON
    # is reported where the configuration is parsed.
    paths = sorted(folder.glob("config*.json"))
    values: list[tuple[Path, Any]] = [(path, _json(path)) for path in paths]
    while values:
        path, value = values.pop()
        inner = value.items() if isinstance(value, dict) else ()
        for name, below in inner:
            named = below.values() if isinstance(below, dict) else [below]
            if str(name).strip("_") in _CODE_FIELDS and any("/" in str(n) for n in named):
                raise ModelError(
                    f"{path}: {name} is {str(below)[:200]!r}, code on the hub that "
                    "would be downloaded and run. Read it; to allow it, add --trust-remote-code.",
                    field=str(name),
                )
            values.append((path, below))
        if isinstance(value, list):
            values += [(path, item) for item in value]


def missing_config(folder: Path) -> ModelError:
    """Return the error for a folder without a configuration, which says what the folder is.

    Parameters
    ----------
    folder : Path
        The folder.
    """
    names = sorted(path.name for path in folder.iterdir())
    advice = "Give the folder that model.save_pretrained(...) wrote."
    if ADAPTER_FILE in names:
        what = f"{_adapter(folder)}, without the model that it belongs to"
        advice = (
            "Load both with peft, merge them (merge_and_unload()), and give the folder that "
            "save_pretrained(...) wrote."
        )
    elif "params.json" in names or "tekken.json" in names:
        found = [n for n in names if n in ("params.json", "tekken.json") or "consolidated" in n]
        what = f"in Mistral's own format ({', '.join(found)})"
        advice = "Give the same model in transformers' format."
    elif "model_index.json" in names:
        what = "a pipeline of diffusers (model_index.json)"
        advice = "Give the subfolder of one of its models, such as text_encoder."
    else:
        what = other_weights(folder) or "no transformers model"
    return ModelError(f"{folder} has no {CONFIG_FILE}: it is {what}. {advice}", path=str(folder))


def missing_weights(folder: Path) -> ModelError:
    """Return the error for a folder without weights to read, which says what it holds instead.

    Parameters
    ----------
    folder : Path
        The folder.
    """
    found = other_weights(folder) or "no weights"
    risk = ", which can run code when they are loaded and are refused" if "pickled" in found else ""
    advice = "Save the model with model.save_pretrained(...)"
    if "variant" in found:
        advice = "Load that variant with transformers and save it with model.save_pretrained(...)"
    return ModelError(
        f"{folder} holds {found}{risk}. {advice}: expected {SINGLE_FILE} or {INDEX_FILE}.",
        path=str(folder),
    )


def other_weights(folder: Path) -> str | None:
    """Return in words which weights a folder holds that are not read; None where it has none.

    Parameters
    ----------
    folder : Path
        The folder.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    variants = {
        match[1]: name
        for name in names
        if (match := re.fullmatch(r"model\.([^.]+)\.safetensors(?:\.index\.json)?", name))
        or (match := re.fullmatch(r"model\.safetensors\.index\.([^.]+)\.json", name))
        or (match := re.fullmatch(r"model\.([^.]+)-[0-9]+-of-[0-9]+\.safetensors", name))
    }
    pickled = [name for name in names if Path(name).suffix in _PICKLED and "training" not in name]
    foreign = {n: _OTHER_FORMATS[s] for n in names if (s := Path(n).suffix) in _OTHER_FORMATS}
    tensors = [name for name in names if name.endswith(".safetensors")]
    if variants:
        files = ", ".join(list(variants.values())[:3])
        return f"only the weights of a variant, {' and '.join(variants)} ({files})"
    if tensors and all("adapter" in name for name in tensors):
        return f"only the weights of an adapter ({', '.join(tensors[:3])})"
    if tensors:
        return f"only weights of other names ({', '.join(tensors[:3])})"
    if pickled:
        return f"only pickled weights ({', '.join(pickled[:3])})"
    if foreign:
        name, kind = next(iter(foreign.items()))
        return f"only weights for {kind} ({name})"
    return None


def _adapter(folder: Path) -> str:
    about = _json(folder / ADAPTER_FILE)
    kind, base = about.get("peft_type"), about.get("base_model_name_or_path")
    of = f" for {str(base)[:200]}" if base else ""
    return f"an adapter of peft ({str(kind or 'of unknown kind')[:40]}){of}"


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where the file is absent or no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
