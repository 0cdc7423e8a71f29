"""Reading, checking and decoding of image files, within limits of bytes and pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.corpus.fields import MISSING
from actlas.pipeline.corpus.formats.base import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The formats that are decoded, whatever a file's suffix: some others run external programs."""

MAX_PIXELS = 1 << 26
"""Largest number of pixels of an image; a small file can hold billions."""

MAX_FILE_BYTES = 64 << 20
"""Largest size of an image file."""

_COLOURS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"})

_COLOURS |= {"YCbCr", "LAB", "HSV"}
"""Pillow's modes of at most eight bits a channel; it truncates deeper ones silently."""


def is_image(path: Path) -> bool:
    """Return whether a file has the suffix of an image format."""
    return path.name.lower().endswith(SUFFIXES)


def read_image(path: Path) -> bytes | Unreadable:
    """Return the bytes of an image file, or the reason why they are no image.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        return _TOO_LARGE
    data = path.read_bytes()
    return check_image(data) or data


def image_of(value: Any, folder: Path | None) -> bytes | Unreadable | None:
    """Return the image file in a record's field; None where the field is empty.

    Parameters
    ----------
    value : object
        Bytes; a path relative to ``folder``; or ``{"bytes": ..., "path": ...}``, the form of data
        sets on the hub.
    folder : Path, optional
        The folder of the file of records. Paths that lead out of it, also through links, are
        refused.
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
    """Return the reason why bytes are not one image that can be decoded; None if they are.

    All pixels are decoded, since the beginning of a truncated file looks intact.
    """
    if len(data) > MAX_FILE_BYTES:
        return _TOO_LARGE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # malformed metadata; Pillow's own limit is above ours
        try:
            decode_image(data)
        except ImageError as error:
            return Unreadable(str(error))
    return None


class ImageError(ValueError):
    """Bytes are not one image within the limits; the message gives the reason."""


_TOO_LARGE = Unreadable(f"an image file of more than {MAX_FILE_BYTES >> 20} MiB")


def decode_image(data: bytes) -> Image:
    """Return an image in RGB, upright.

    As in transformers' ``load_image``, the EXIF orientation is applied and transparency dropped.

    Raises
    ------
    ImageError
        The image is damaged, has several frames, more than eight bits a channel, or more pixels
        than the limit.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()  # loads every decoder; formats not yet used are unknown otherwise
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
    except Exception as error:  # decoders raise exceptions of all kinds for damaged bytes
        raise ImageError(f"a damaged image ({type(error).__name__})") from error


def _check_header(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_many())
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError("an image of several frames")
    if image.mode not in _COLOURS or _is_deep(image):
        raise ImageError(f"an image of mode {image.mode}: more than 8 bits a channel")


def _is_deep(image: Image) -> bool:
    """Return whether an image has more than 8 bits a channel, which Pillow truncates silently."""
    given: list[Any] = []
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        given += arguments if isinstance(arguments, (tuple, list)) else [arguments]
    if any(isinstance(value, str) and ";16" in value for value in given):
        return True
    if image.format == "PPM":  # the maximal value of a channel
        return any(isinstance(value, int) and value > 255 for value in given)
    tags: Any = getattr(image, "tag_v2", None)
    bits = tags.get(258, 8) if image.format == "TIFF" and tags is not None else 8
    return any(int(n) > 8 for n in (bits if isinstance(bits, tuple) else (bits,)))


def _too_many() -> str:
    return f"an image of more than {MAX_PIXELS:,} pixels"
