"""From a picture to a model's input, by transformers' own image processor."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.model.config import LOADING_ERRORS, loading_error, quiet
from actlas.store.errors import ModelError
from actlas.store.format.schema import ProcessorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

BACKEND = "pil"
"""Of transformers' image processors: the one that needs no further package. Another backend
resizes otherwise, and would give other rows."""

_PROCESSOR_FILE = "preprocessor_config.json"


def load_processor(folder: Path, *, mixed: bool = False, trust_remote_code: bool = False) -> Any:
    """Return the image processor that lies with a model; the one for both, for a mixed model.

    Raises
    ------
    ModelError
        There is none, or it cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    loader: Any = AutoProcessor if mixed else AutoImageProcessor
    try:
        with quiet():
            return loader.from_pretrained(
                str(folder), backend=BACKEND, trust_remote_code=trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise loading_error("image processor", str(folder), error) from error


def describe_processor(processor: Any, identity: str, **layout: Any) -> ProcessorSpec:
    """Return what a plan holds of an image processor.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
    identity : str
        What the plan calls it.
    **layout
        The other fields of :class:`~actlas.store.format.schema.ProcessorSpec`.
    """
    config = json.loads(processor.to_json_string())
    return ProcessorSpec(id=identity, sha256=config_sha256(config), config=config, **layout)


def config_sha256(config: dict[str, Any]) -> str:
    """Return the sha256 of a configuration as JSON with sorted keys and no blanks."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_processor(spec: ProcessorSpec) -> Any:
    """Return the image processor of a plan, from its configuration alone."""
    return _built(json.dumps(spec.config, sort_keys=True))


@lru_cache(maxsize=4)
def _built(config: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="actlas-processor-") as folder:
        (Path(folder) / _PROCESSOR_FILE).write_text(config)
        return load_processor(Path(folder))


def pixels(processor: Any, images: Sequence[Image]) -> NDArray[Any]:
    """Return a model's ``pixel_values`` for pictures; [image, channel, height, width].

    A mask that a processor gives beside them is all ones, every picture having the same shape.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
    images : sequence of PIL.Image.Image
        In RGB.
    """
    made: NDArray[Any] = processor(images=list(images), return_tensors="np")["pixel_values"]
    return np.ascontiguousarray(made)


def blank_images() -> list[Image]:
    """Return pictures of nothing: wide, high, square, and much larger."""
    from PIL import Image

    return [Image.new("RGB", size) for size in ((96, 64), (64, 96), (64, 64), (1400, 900))]


def blank_pixels(processor: Any, n_images: int = 1) -> NDArray[Any]:
    """Return ``pixel_values`` for blank pictures.

    Raises
    ------
    ModelError
        Pictures of different shapes give inputs of different shapes.
    """
    with quiet():
        made = [pixels(processor, [image]) for image in blank_images()]
    shapes = sorted({str(list(values.shape)) for values in made})
    if len(shapes) > 1 or made[0].ndim != 4:
        raise ModelError(
            f"The image processor {type(processor).__name__} gives pictures of other shapes other "
            f"inputs ({' and '.join(shapes)}). Expected [image, channel, height, width], the same "
            "for all: give it a fixed size or a centre crop in its configuration.",
            field="processor",
        )
    return np.repeat(made[0], n_images, axis=0)
