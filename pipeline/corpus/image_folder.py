"""Corpora of image files: each file is a document, labelled by its folder's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from actlas.pipeline.corpus.corpus import Corpus, open_corpus, refuse_file_options
from actlas.pipeline.corpus.files import LeftOut, choose_files, matched
from actlas.pipeline.corpus.formats.base import Unreadable
from actlas.pipeline.corpus.image_files import SUFFIXES, is_image, read_image
from actlas.pipeline.corpus.records import PATIENCE_RECORDS, ReadCounts, Record
from actlas.pipeline.options import PlanOptions
from actlas.store.display.text import counted
from actlas.store.errors import ConfigError, CorpusError
from actlas.store.format import layout
from actlas.store.objects.faults import run_fault


def open_images(options: PlanOptions) -> Corpus:
    """Find a corpus of images: a folder of image files, or records with an image field.

    Parameters
    ----------
    options : PlanOptions
        The corpus and its fields.

    Raises
    ------
    CorpusError
        The corpus does not exist, or has no images.
    """
    if options.image_field is not None or options.documents is not None:
        return open_corpus(options)
    return ImageFolder(options)


def has_images(options: PlanOptions) -> bool:
    """Return whether a corpus may have images, for a model of texts with images."""
    if options.image_field is not None:
        return True
    try:
        return isinstance(open_mixed(options), ImageFolder)
    except CorpusError:  # raised again where the corpus is opened for reading
        return False


def open_mixed(options: PlanOptions) -> Corpus:
    """Find a corpus of texts, some with images; or of images alone.

    A folder or glob of image files without files of text or records is a corpus of images.

    Parameters
    ----------
    options : PlanOptions
        The corpus and its fields.

    Raises
    ------
    CorpusError
        The corpus does not exist, or has neither texts nor images.
    """
    try:
        return open_corpus(options)
    except CorpusError as no_texts:
        if options.image_field is not None:
            raise
        try:
            return ImageFolder(options)
        except CorpusError:
            raise no_texts from None


class ImageFolder:
    """A corpus of local image files, read in the order of their names.

    The label of ``DIR/cats/1.png`` is ``cats``, however deep the file lies below that folder;
    images in ``DIR`` itself have no label. Hidden files and folders are left out. For a uniform
    sample (``max_tokens``) the files are read in a seeded order, so that not all must be read.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan; ``corpus`` is a folder, a glob, or one image.

    Raises
    ------
    CorpusError
        There are no images.
    """

    finite = True
    text_field: str | None = None

    def __init__(self, options: PlanOptions) -> None:
        self.uri = options.corpus
        self.counts = ReadCounts()
        _refuse_label_field(options)
        self._root, self._files, self._left_out = _find(options.corpus)
        self.labelled = any(self._label(file) is not None for file in self._files)
        shuffled = options.order == "shuffled" or (options.order is None and not self.labelled)
        self.drawn = options.max_tokens is not None and shuffled and options.sample != "head"
        if self.drawn:
            n = len(self._files)
            visited = layout.permutation(options.seed, layout.STREAM_DOCUMENTS, 0, n)
            self._files = [self._files[place] for place in visited.tolist()]
        self._place = 0

    def records(self) -> Iterator[Record]:
        """Yield every image that can be decoded, with the file's name as its source."""
        self.counts = ReadCounts(left_out=self._left_out.lines())
        n_images = 0
        for self._place, file in enumerate(self._files):  # noqa: B020 - read by fraction()
            source = file.relative_to(self._root).as_posix()
            self.counts.n_read += 1
            found = _read(file)
            if isinstance(found, Unreadable):
                self.counts.skip(found.reason, source, 0)
            else:
                n_images += 1
                yield Record("", self._label(file), source, 0, image=found)
            if self.counts.n_read == PATIENCE_RECORDS:
                self._check(n_images)
        self._place = len(self._files)
        self._check(n_images)

    def _check(self, n_images: int) -> None:
        if not n_images:
            raise CorpusError(
                f"{self.uri}: none of {counted(self.counts.n_read, 'file')} is an image that can "
                f"be decoded: {'; '.join(self.counts.lines())}.",
                corpus=self.uri,
            )

    def _label(self, file: Path) -> str | None:
        parts = file.relative_to(self._root).parts
        return parts[0] if len(parts) > 1 else None

    def describe(self) -> str:
        """Return the corpus with the number of its files of each kind."""
        kinds = Counter(file.suffix.lower() for file in self._files)
        files = " and ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        n = self._left_out.n_files.total()
        left_out = f"; {n:,} left out" if n else ""
        return f"{self.uri} ({files} to read{left_out})"

    def fraction(self) -> float | None:
        """Return the share of the files that was read."""
        return self._place / len(self._files)


def _refuse_label_field(options: PlanOptions) -> None:
    refuse_file_options(options)
    if options.label_field is not None:
        raise ConfigError(
            "--label-field is for records with fields: in a folder of images each folder's name "
            "is the label of what lies in it. Leave it out, or give records and --image-field.",
            field="label_field",
        )


def _find(uri: str) -> tuple[Path, list[Path], LeftOut]:
    path = Path(uri).expanduser()
    matches, root = ([path], path.parent) if path.exists() else matched(path)
    root = path if path.is_dir() else root
    left_out = LeftOut()
    files = choose_files(matches, root, left_out, _no_image)
    if not files:
        raise CorpusError(
            f"{uri}: there are no images here. Expected a folder (DIR/label/*.png), file or glob "
            f"of {', '.join(SUFFIXES)}; or records (.jsonl, .csv, .parquet) and --image-field.",
            path=uri,
        )
    return root, files, left_out


def _no_image(path: Path) -> str | None:
    return None if is_image(path) else "no image by its name"


def _read(file: Path) -> bytes | Unreadable:
    try:
        return read_image(file)
    except OSError as error:
        fault = None if isinstance(error, PermissionError) else run_fault(error, str(file))
        raise fault or CorpusError(
            f"{file}: {error.strerror or error}. Expected an image that this user may read.",
            path=str(file),
        ) from error
