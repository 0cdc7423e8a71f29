"""Corpora shipped with actlas, available without a network.

``python-docs`` is read from the running Python; ``language`` and ``arithmetic`` are the contrasts
of two functional localizers (Fedorenko et al., 2010; Fedorenko et al., 2013), with stimuli made for
actlas, the same on every machine.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

from actlas.pipeline.builtin.docstrings import Docstring, docstrings, module_files
from actlas.pipeline.builtin.nonwords import read_lines
from actlas.pipeline.builtin.splitmix import SplitMix64

SHORT_CHARS = 80
"""Docstrings below this number of characters are joined with the others of their module."""

ARITHMETIC_SEED = 42

N_SUMS = 100
"""Number of sums per condition."""


class BuiltinRecord(NamedTuple):
    """One document of a builtin corpus.

    Attributes
    ----------
    text : str
        The text.
    label : str or None
        The condition.
    name : str
        The origin, such as ``json.dumps`` or ``sentence 17``.
    """

    text: str
    label: str | None
    name: str


def python_docs(stdlib: Path | None = None) -> Iterator[BuiltinRecord]:
    """Yield Python's help topics, then the standard library's docstrings, module by module.

    No module is imported. The order is that of the names; repeated texts are left out. Docstrings
    below `SHORT_CHARS` characters are joined into one record per module, named
    ``module (short)``, unless that is short too. Lone surrogates, which no tokenizer accepts, are
    written as escapes.

    Parameters
    ----------
    stdlib : Path, optional
        Folder of the modules. Default: the standard library of the running Python.
    """
    root = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    seen: set[bytes] = set()
    for name, text in sorted(topics.topics.items()):
        if _is_new(text, seen):
            yield BuiltinRecord(_encodable(text.strip()), None, f"topic {name}")
    for module, path in module_files(root):
        short: list[Docstring] = []
        for docstring in docstrings(path.read_bytes(), module):
            if not _is_new(docstring.text, seen):
                continue
            if len(docstring.text) < SHORT_CHARS:
                short.append(docstring)
            else:
                yield BuiltinRecord(_encodable(docstring.text), None, docstring.name)
        joined = "\n\n".join(f"{docstring.name}\n    {docstring.text}" for docstring in short)
        if len(joined) >= SHORT_CHARS:
            yield BuiltinRecord(_encodable(joined), None, f"{module} (short)")


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Return whether ``text`` is not empty and, apart from white space, not yet in ``seen``."""
    words = " ".join(text.split())
    key = blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if not words or key in seen:
        return False
    seen.add(key)
    return True


def language() -> Iterator[BuiltinRecord]:
    """Yield 240 sentences (S) of twelve words, then 240 strings of twelve non-words (N).

    The contrast of Fedorenko et al. (2010), doi:10.1152/jn.00032.2010, with sentences written
    for actlas and generated non-words, each of the same length as its word.
    """
    for i, sentence in enumerate(read_lines("sentences.txt")):
        yield BuiltinRecord(sentence, "S", f"sentence {i}")
    for i, string in enumerate(read_lines("nonwords.txt")):
        yield BuiltinRecord(string, "N", f"nonwords {i}")


def arithmetic() -> Iterator[BuiltinRecord]:
    """Yield 100 hard sums (operands 100 to 199), then 100 easy ones (1 to 19), all distinct.

    The contrast of the multiple-demand localizer (Fedorenko et al., 2013,
    doi:10.1073/pnas.1315235110) in the form of AlKhamissi et al. (2025, arXiv:2411.02280), drawn
    by :class:`~actlas.pipeline.builtin.splitmix.SplitMix64`.
    """
    random = SplitMix64(ARITHMETIC_SEED)
    for label, first, stop in (("hard", 100, 200), ("easy", 1, 20)):
        drawn: set[tuple[int, int]] = set()
        while len(drawn) < N_SUMS:
            a, b = (first + random.below(stop - first) for _ in range(2))
            if (a, b) not in drawn:
                name = f"{label} sum {len(drawn)}"
                drawn.add((a, b))
                yield BuiltinRecord(f"Question: Solve {a} + {b}?\nAnswer: {a + b}", label, name)


BUILTIN_CORPORA: dict[str, Callable[[], Iterator[BuiltinRecord]]] = {
    "python-docs": python_docs,
    "language": language,
    "arithmetic": arithmetic,
}
"""Corpora by name; each call starts a new iterator."""

LABELLED: frozenset[str] = frozenset({"language", "arithmetic"})
"""The corpora whose records carry a label."""
