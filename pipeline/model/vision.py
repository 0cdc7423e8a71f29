"""Image processors of transformers: loading, description for the plan, and their output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.model.config import loading, quiet
from actlas.store.errors import ModelError
from actlas.store.format.schema import ProcessorSpec
from actlas.store.objects.leftovers import temporary_folder

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from PIL.Image import Image

BACKEND = "pil"
"""Backend of transformers' image processors: the one that needs no further package. Another
backend resizes differently, so that its rows would differ."""

_PROCESSOR_FILE = "preprocessor_config.json"


def load_processor(folder: Path, *, mixed: bool = False, trust_remote_code: bool = False) -> Any:
    """Return the processor in a model's folder.

    Parameters
    ----------
    folder : Path
        The model's folder.
    mixed : bool
        Whether to load the processor of text and images, and not the image processor.
    trust_remote_code : bool
        Whether code that comes with the processor may run.

    Raises
    ------
    ModelError
        There is no processor, or it cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    loader: Any = AutoProcessor if mixed else AutoImageProcessor
    with loading("image processor", str(folder)):
        return loader.from_pretrained(
            str(folder), backend=BACKEND, trust_remote_code=trust_remote_code
        )


def describe_processor(processor: Any, identity: str, **layout: Any) -> ProcessorSpec:
    """Return the plan's entry for an image processor.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
        The processor.
    identity : str
        Its id in the plan.
    **layout
        The other fields of :class:`~actlas.store.format.schema.ProcessorSpec`.
    """
    config = json.loads(processor.to_json_string())
    return ProcessorSpec(id=identity, sha256=config_sha256(config), config=config, **layout)


def config_sha256(config: dict[str, Any]) -> str:
    """Return the sha256 of a configuration as JSON with sorted keys and no white space."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_processor(spec: ProcessorSpec) -> Any:
    """Return a plan's image processor, built from its configuration alone."""
    return _built(json.dumps(spec.config, sort_keys=True))


@lru_cache(maxsize=4)
def _built(config: str) -> Any:
    with temporary_folder("processor") as folder:
        (folder / _PROCESSOR_FILE).write_text(config)
        return load_processor(folder)


def pixels(
    processor: Any, images: Sequence[Image]
) -> Shaped[NDArray[Any], "images channels height width"]:
    """Return a model's ``pixel_values``, shape [image, channel, height, width].

    The mask that some processors return as well is left out: all images have one shape, so that
    it is all ones.

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
        The processor.
    images : sequence of PIL.Image.Image
        The images, in RGB.
    """
    made: NDArray[Any] = processor(images=list(images), return_tensors="np")["pixel_values"]
    return np.ascontiguousarray(made)


def blank_images() -> list[Image]:
    """Return black images of four shapes: wide, high, square, and much larger."""
    from PIL import Image

    return [Image.new("RGB", size) for size in ((96, 64), (64, 96), (64, 64), (1400, 900))]


def blank_pixels(
    processor: Any, n_images: int = 1
) -> Shaped[NDArray[Any], "images channels height width"]:
    """Return ``pixel_values`` for black images, shape [image, channel, height, width].

    Parameters
    ----------
    processor : transformers.BaseImageProcessor
        The processor.
    n_images : int
        Number of images.

    Raises
    ------
    ModelError
        Images of different shapes give inputs of different shapes.
    """
    with quiet():
        made = [pixels(processor, [image]) for image in blank_images()]
    shapes = sorted({str(list(values.shape)) for values in made})
    if len(shapes) > 1 or made[0].ndim != 4:
        raise ModelError(
            f"The image processor {type(processor).__name__} gives images of different shapes "
            f"different inputs ({' and '.join(shapes)}). Expected [image, channel, height, width], "
            "the same for all: set a fixed size or a centre crop in its configuration.",
            field="processor",
        )
    return np.repeat(made[0], n_images, axis=0)
