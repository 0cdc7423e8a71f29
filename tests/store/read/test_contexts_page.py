"""The page of contexts: legend, distribution, table of contents, and each context on one line."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from actlas.store.display.histogram import BINS, histogram_of
from actlas.store.features.contexts import ActivationContext, Contexts, contexts_page


def context(tokens: tuple[str, ...], activations: tuple[float, ...]) -> ActivationContext:
    return ActivationContext(
        value=activations[1],
        t=7,
        doc_idx=2,
        pos_idx=1,
        label="S",
        source="a.jsonl",
        before=tokens[0],
        token=tokens[1],
        after=tokens[2],
        tokens=tokens,
        activations=activations,
        peak=1,
    )


def contexts(title: str, *entries: ActivationContext) -> Contexts:
    values = np.array([0.5, 0.5, 2.0, np.nan])
    of = lambda: histogram_of(values, "activations above zero")  # noqa: E731
    return Contexts(entries, title, {"density": "0.01"}, 2.0, of)


def test_a_page_without_a_feature_says_so() -> None:
    assert "<title>No contexts</title>" in contexts_page([])


ENTRY = context(("one\n\n\ntwo ", "three", "\nfour"), (0.0, 2.0, 1.0))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [given["href"] or ""] if tag == "a" else []
        self.ids += [given["id"] or ""] if "id" in given else []


def test_several_have_a_table_of_contents() -> None:
    page = contexts_page([contexts(f"sae, feature {i}", ENTRY) for i in range(3)])
    tags = Tags()
    tags.feed(page)
    assert tags.links == [f"#{name}" for name in tags.ids] == ["#s1", "#s2", "#s3"]
    assert "<title>Contexts of sae, feature 0 and 2 more</title>" in page
    assert "<nav" not in contexts_page([contexts("one", ENTRY)])


def test_line_breaks_are_folded() -> None:
    page = contexts_page([contexts("one", ENTRY)])
    [line] = [line for line in page.split("\n") if "three</span>" in line]
    assert "one↵&#8203;↵&#8203;↵&#8203;two " in line and "↵&#8203;four" in line


def test_the_legend_names_the_scale() -> None:
    page = contexts_page([contexts("one", ENTRY)])
    assert ">2</span>" in page and ">0.5</span>" in page and ">-2</span>" not in page
    below = contexts("one", context(("a", "b", "c"), (-1.0, 2.0, 0.0)))
    assert ">-2</span>" in contexts_page([below])


def test_the_histogram_counts_finite_values() -> None:
    found = histogram_of([0.5, 0.5, 2.0, np.nan], "x")
    assert found is not None and (found.start, found.stop) == (0.5, 2.0)
    assert len(found.counts) == BINS and (found.counts[0], found.counts[-1]) == (2, 1)
    assert histogram_of([np.nan], "x") is None
    page = contexts_page([contexts("one", ENTRY)])
    assert "3 tokens: activations above zero" in page and page.count("<rect") == 2
    assert "<svg" not in contexts_page([Contexts([ENTRY], "one", {}, 2.0)])
