"""What is printed cannot control a terminal, and nothing of it is lost."""

from __future__ import annotations

import doctest
import io
import json
import sys
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlas.jobs import terminal
from actlas.jobs.run.reports.base import ErrorDetail, ErrorReport
from actlas.jobs.terminal import Span, echo, echo_text
from actlas.store.display import text as display
from actlas.store.display.contexts_html import page_html
from actlas.store.display.html import marked_html, table_html, tokens_html

any_text = st.text(st.characters(exclude_categories=[]))
CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in CONTROLS}


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def test_examples() -> None:
    for module in (terminal, display):
        assert doctest.testmod(module).failed == 0


@given(st.lists(any_text, min_size=1))
def test_a_line_stays_a_line(lines: list[str]) -> None:
    out = io.StringIO()
    echo(*lines, out=out)
    printed = out.getvalue()
    assert controls(printed) <= {"\n"} and printed.count("\n") == len(lines)
    again = io.StringIO()
    echo(*printed.splitlines(), out=again)
    assert again.getvalue() == printed  # what is escaped is not escaped again


@given(any_text)
def test_a_text_keeps_its_lines_and_tabs(text: str) -> None:
    shown = display.printable_lines(text)
    assert controls(shown) <= {"\n", "\t"}
    assert shown.count("\n") == text.count("\n")


@given(any_text)
def test_json_stays_json(text: str) -> None:
    printed = ErrorReport(error=ErrorDetail(kind="config", message=text)).to_json()
    assert printed.isascii() and printed.isprintable()
    assert json.loads(printed)["error"]["message"] == text
    out = io.StringIO()
    echo(printed, out=out)
    assert out.getvalue() == printed + "\n"


@given(any_text)
def test_pages_hide_nothing(text: str) -> None:
    pages = [table_html([(text, text)]), tokens_html(text, [text], [1]), page_html(text, [])]
    pages += [marked_html(text, text, text, text)]
    for page in pages:
        assert controls(page) <= {"\n", "\t", "\u200c", "\u200d"}
        HTMLParser().feed(page)
        page.encode()


def test_styles_are_for_terminals_and_text_that_a_terminal_lacks_is_escaped() -> None:
    line = [Span("plain "), Span("bold\x1b[2J\u2713", "1")]
    on, off = Terminal(), io.StringIO()
    echo(line, out=on)
    echo(line, out=off)
    assert on.getvalue() == "plain \x1b[1mbold\\x1b[2J\\u2713\x1b[0m\n"
    assert off.getvalue() == "plain bold\\x1b[2J\u2713\n"
    with pytest.raises(AssertionError):
        echo([Span("x", "2J\x1b")], out=on)


def test_the_guard_escapes_what_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminal.guard()
    terminal.guard()  # again changes nothing
    print("a\x1b", "[2J\tb", sep="")  # noqa: T201 - what is tried
    sys.stdout.writelines(["x\r\n", "\u202ey\n"])
    sys.stderr.write("z\x9b")
    echo([Span("ours", "1")])
    echo_text("log\x07\nline\n", err=True)
    assert not hasattr(sys.stdout, "buffer") and sys.stdout.isatty()
    assert out.getvalue() == "a\\x1b[2J\tb\nx\n\\u202ey\n\x1b[1mours\x1b[0m\n"
    assert err.getvalue() == "z\\x9blog\\x07\nline\n"
