r"""The only functions that write to the terminal: what they write cannot control it.

A terminal obeys control characters: they set its title, clear it, reorder what is read, and end a
line. Names in stores, corpora, models and errors of libraries are untrusted, so :func:`echo`
escapes them, and :func:`guard` escapes what anything else writes to stdout and stderr.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from actlas.store.display.text import printable, printable_lines
from actlas.store.voice import spoken

if TYPE_CHECKING:
    from rich.console import Console


class Span(NamedTuple):
    """A piece of a line with a style.

    Attributes
    ----------
    text : str
        The text.
    style : str
        Parameters of the SGR control sequence (ECMA-48, 8.3.117), such as ``1`` for bold or
        ``48;2;255;0;0`` for a red background; empty for plain text.
    """

    text: str
    style: str = ""


Line = str | Sequence[Span]
"""A line to print: plain, or with styles."""


def echo(*lines: Line, err: bool = False, out: TextIO | None = None) -> None:
    r"""Print lines, with control characters escaped.

    A newline inside a line is escaped as well, so that a name cannot pass for a line of ours. Text
    that the stream's encoding lacks is escaped. Styles are left out unless the stream is a
    terminal.

    Parameters
    ----------
    *lines : str or sequence of Span
        The lines, each without its newline; none prints nothing.
    err : bool
        Print to standard error.
    out : text stream, optional
        Print to this stream instead.

    Examples
    --------
    >>> echo("label a\x1b[2J\nb", out=sys.stdout)
    label a\x1b[2J\nb
    """
    stream = out if out is not None else _stream(err)
    if stream is None or not lines:
        return
    styled = stream.isatty()
    text = "".join(_line(line, styled) + "\n" for line in lines)
    _write(_raw(stream), text)


def echo_text(text: str, *, err: bool = False) -> None:
    """Print text that may have several lines: a traceback, or the log of a job.

    Control characters are escaped, except for newlines and tabs. No newline is added.

    Parameters
    ----------
    text : str
        The text.
    err : bool
        Print to standard error.
    """
    if (stream := _stream(err)) is not None:
        _write(_raw(stream), printable_lines(text))


def is_terminal(*, err: bool = False) -> bool:
    """Return whether standard output, or standard error, is a terminal."""
    stream = _stream(err)
    return stream is not None and stream.isatty()


def console(out: TextIO | None = None, *, err: bool = False) -> Console:
    """Return rich's console for a stream; show texts on it that :func:`printable` returned.

    Parameters
    ----------
    out : text stream, optional
        The stream; standard output by default.
    err : bool
        Use standard error by default.
    """
    from rich.console import Console

    stream = out if out is not None else _stream(err)
    return Console(file=io.StringIO() if stream is None else _raw(stream))


@contextmanager
def displayed(display: AbstractContextManager[Any]) -> Iterator[None]:
    """Show one of rich's live displays; what others write meanwhile appears above it, escaped.

    Parameters
    ----------
    display : context manager
        The display, on a :func:`console`. It replaces stdout and stderr while it is shown.
    """
    with display:
        before = sys.stdout, sys.stderr
        guard()
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def guard() -> None:
    """Replace stdout and stderr by streams that escape what is written to them.

    This covers what does not go through :func:`echo`: click's usage errors, warnings and logs of
    libraries, and the traceback of an error that nothing expected.
    """
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


class _Escaping:
    """A text stream whose ``write`` escapes control characters, except for newlines and tabs.

    It has no ``buffer``: bytes could not be escaped. Other attributes are those of the stream.

    Parameters
    ----------
    raw : text stream
        The stream that is written to.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.raw, name)

    def write(self, text: str) -> int:
        """Write text, escaped."""
        self.raw.write(_encodable(printable_lines(text), self.raw))
        return len(text)

    def writelines(self, texts: Sequence[str]) -> None:
        """Write texts, escaped."""
        for text in texts:
            self.write(text)


def _stream(err: bool) -> TextIO | None:
    """Return stdout or stderr; None in a process that was started without it."""
    return sys.stderr if err else sys.stdout


def _guarded(stream: TextIO | None) -> TextIO:
    if stream is None or isinstance(stream, _Escaping):
        return cast("TextIO", stream)
    return cast("TextIO", _Escaping(stream))


def _raw(stream: TextIO) -> TextIO:
    return stream.raw if isinstance(stream, _Escaping) else stream


def _line(line: Line, styled: bool) -> str:
    if isinstance(line, str):
        return printable(spoken(line))
    return "".join(_span(span) if styled else printable(span.text) for span in line)


def _span(span: Span) -> str:
    assert re.fullmatch(r"[\d;]*", span.style), span
    text = printable(span.text)
    return f"\x1b[{span.style}m{text}\x1b[0m" if span.style else text


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write(stream: TextIO, text: str) -> None:
    stream.write(_encodable(text, stream))
    stream.flush()
