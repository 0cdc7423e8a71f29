"""Image files as bytes, and what can be seen in them: never more pixels than a limit."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.corpus.fields import MISSING
from actlas.pipeline.corpus.readers import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Nothing else is decoded, whatever a file is called: some formats run other programs."""

MAX_PIXELS = 1 << 26
"""A picture of more is no input of a model, and a small file can hold billions."""

MAX_FILE_BYTES = 64 << 20

_COLOURS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"})

_COLOURS |= {"YCbCr", "LAB", "HSV"}
"""Modes of eight bits or less: more of them would be cut off without a word."""


def is_image(path: Path) -> bool:
    """Return whether a file's name is that of an image."""
    return path.name.lower().endswith(SUFFIXES)


def read_image(path: Path) -> bytes | Unreadable:
    """Return an image file's bytes, or why they are no image: see :func:`check_image`.

    Raises
    ------
    OSError
        It cannot be read.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        return _TOO_LARGE
    data = path.read_bytes()
    return check_image(data) or data


def image_of(value: Any, folder: Path | None) -> bytes | Unreadable | None:
    """Return the image that a record's field holds; None where it holds none.

    Parameters
    ----------
    value : object
        Bytes; a path relative to ``folder``; or, as data sets on the hub have them, ``{"bytes":
        ..., "path": ...}``.
    folder : Path, optional
        Where the file of records lies. No path leads out of it, links followed.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "" or value is MISSING:
        return None
    if isinstance(value, bytes):
        return check_image(value) or value
    if not isinstance(value, str):
        return Unreadable("an image that is neither bytes nor a path")
    if folder is None:
        return Unreadable("an image that is a path, in a data set without a folder")
    try:
        file = (folder / value).resolve()
        if not file.is_relative_to(folder.resolve()):
            return Unreadable("an image outside the folder of its records")
        return read_image(file) if file.is_file() else Unreadable("no such image file")
    except (OSError, ValueError) as error:
        return Unreadable(f"an image file that cannot be read ({type(error).__name__})")


def check_image(data: bytes) -> Unreadable | None:
    """Return why bytes are not one image that can be decoded; None where they are.

    Every pixel is decoded: a file that is cut short looks whole at its beginning.
    """
    if len(data) > MAX_FILE_BYTES:
        return _TOO_LARGE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd notes in a file; Pillow's own limit is above ours
        try:
            decode_image(data)
        except ImageError as error:
            return Unreadable(str(error))
    return None


class ImageError(ValueError):
    """Bytes that are not one image within the limits. The message is the reason."""


_TOO_LARGE = Unreadable(f"an image file of more than {MAX_FILE_BYTES >> 20} MiB")


def decode_image(data: bytes) -> Image:
    """Return the picture in RGB, the right way up.

    The turn that a camera notes in the file (EXIF) is applied, transparency is dropped, as
    transformers' own ``load_image`` does.

    Raises
    ------
    ImageError
        It is damaged, has several frames, more than eight bits a channel, or more pixels than
        the limit.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()  # every decoder, or the formats whose turn has not come are not known
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=known) as image:
            _check_header(image)
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ImageError("not an image, or of a format that is not read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many()) from error
    except ImageError:
        raise
    except Exception as error:  # what its decoders raise for damaged bytes is of every kind
        raise ImageError(f"a damaged image ({type(error).__name__})") from error


def _check_header(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_many())
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError("an image of several frames")
    if image.mode not in _COLOURS or _is_deep(image):
        raise ImageError(f"an image of mode {image.mode}: more than 8 bits a channel")


def _is_deep(image: Image) -> bool:
    """Whether a file has more than 8 bits a channel, which Pillow reduces to 8 silently."""
    given: list[Any] = []
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        given += arguments if isinstance(arguments, (tuple, list)) else [arguments]
    if any(isinstance(value, str) and ";16" in value for value in given):
        return True
    if image.format == "PPM":  # the largest value of a channel
        return any(isinstance(value, int) and value > 255 for value in given)
    tags: Any = getattr(image, "tag_v2", None)
    bits = tags.get(258, 8) if image.format == "TIFF" and tags is not None else 8
    return any(int(n) > 8 for n in (bits if isinstance(bits, tuple) else (bits,)))


def _too_many() -> str:
    return f"an image of more than {MAX_PIXELS:,} pixels"
