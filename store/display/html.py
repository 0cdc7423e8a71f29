"""How stores, documents and contexts show themselves in a notebook: HTML, all text escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actlas.store.read.document import Context, Document
    from actlas.store.read.documents import Documents
    from actlas.store.store import Store

MAX_TOKENS = 400

_TABLE = "border-collapse:collapse;text-align:left"

_TOKEN = "border-bottom:1px solid #9ab;white-space:pre-wrap"


def table_html(rows: list[tuple[str, Any]]) -> str:
    """Return a table of two columns, escaped."""
    cells = "".join(
        f"<tr><th style='padding-right:1em'>{escape(str(name))}</th>"
        f"<td>{escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table style='{_TABLE}'>{cells}</table>"


def store_html(store: Store) -> str:
    """Return a store's plan and progress."""
    plan = store.plan
    hookpoints = ", ".join(f"{h.name} ({h.width})" for h in plan.hookpoints)
    return table_html(
        [
            ("actlas store", store.path),
            ("model", f"{plan.model.id} ({plan.model.architecture})"),
            ("corpus", plan.corpus.uri),
            ("rows", f"{plan.n_tokens:,} of {plan.n_documents:,} documents"),
            ("hookpoints", hookpoints),
            ("stored as", f"{plan.dtype}, compression {plan.compression}, order {plan.order}"),
            ("extracted", ", ".join(store.progress())),
        ]
    )


def documents_html(documents: Documents) -> str:
    """Return what kinds of documents there are."""
    rows: list[tuple[str, Any]] = [
        ("documents", f"{len(documents):,}"),
        ("sources", f"{len(documents.source_names):,}"),
    ]
    if documents.label_names:
        rows.append(("labels", ", ".join(documents.label_names)))
    return table_html(rows)


def document_html(document: Document) -> str:
    """Return a document's text with its tokens underlined one by one."""
    pieces = "".join(
        f"<span style='{_TOKEN}' title='pos {pos}, id {token_id}'>{escape(token)}</span>&#8203;"
        for pos, (token, token_id) in enumerate(
            zip(document.tokens[:MAX_TOKENS], document.token_id.tolist(), strict=False)
        )
    )
    more = len(document) - MAX_TOKENS
    rest = f" <i>… and {more:,} more tokens</i>" if more > 0 else ""
    label = f", label {document.label}" if document.label is not None else ""
    head = f"document {document.doc_idx}: {document.source.name}, record {document.source.record}"
    return f"<div><b>{escape(head + label)}</b>, {len(document):,} tokens<br>{pieces}{rest}</div>"


def context_html(context: Context) -> str:
    """Return a context with its token marked."""
    return (
        f"<div style='white-space:pre-wrap'>{escape(context.before)}"
        f"<mark title='document {context.doc_idx}, token {context.pos_idx}'>"
        f"{escape(context.token)}</mark>{escape(context.after)}</div>"
    )
