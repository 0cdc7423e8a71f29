"""The labels of a plan's documents as an estimate shows them, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from actlas.pipeline.plan.columns import DraftColumns
from actlas.store.display.text import counted, listed, plural

MAX_NAMES = 20
"""Labels, names in a column of tokens, or files, that a line lists."""


def label_doubts(columns: DraftColumns, *, partial: bool) -> Iterator[str]:
    """Yield a sentence for everything about the labels that may be a mistake.

    Parameters
    ----------
    columns : DraftColumns
        The chosen documents, or a sample of them.
    partial : bool
        Whether the corpus has documents that were not chosen.
    """
    if columns.label is None:
        return
    left_out, names = columns.labels_left_out, columns.label_names
    if left_out:
        noun = "label" if len(left_out) == 1 else plural("label")
        names_of = listed(left_out, MAX_NAMES)
        yield (
            f"no document of the plan has the {noun} {names_of}, which the corpus has: "
            "take more tokens (--max-tokens), or --sample uniform"
        )
    elif len(names) == 1 and partial:
        yield (
            f"all documents read ({columns.n_documents:,}) have the label {names[0]}: in a corpus "
            "that is sorted by label, the other labels come later, and --sample uniform takes them"
        )
    if n_without := int((columns.label < 0).sum()):
        yield f"{counted(n_without, 'document')} without a label"


def names_with_counts(names: Mapping[str, int], limit: int = MAX_NAMES) -> str:
    """Return names with their counts, the most frequent first.

    Parameters
    ----------
    names : mapping of str to int
        The count of each name.
    limit : int
        Names to list; further ones are counted.
    """
    shown = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f", and {len(shown) - limit:,} more" if len(shown) > limit else ""
    return ", ".join(f"{name} {n:,}" for name, n in shown[:limit]) + more
