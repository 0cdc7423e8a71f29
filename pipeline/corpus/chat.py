"""Corpora of messages, formatted by the tokenizer's chat template.

A document is one conversation, and its text is the template's output. Special strings of the
template become special tokens. A record with such a string in a message is skipped, since the
message could impersonate another speaker.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jinja2

from actlas.pipeline.corpus.formats.base import Unreadable
from actlas.pipeline.corpus.spans import Span
from actlas.pipeline.corpus.tokenization import DocumentTokenizer, Tokens, bos_id
from actlas.store.errors import ModelError

_SPECIAL = Unreadable("a message contains a special token's string")

_CHANGED = Unreadable("the chat template changes, drops or repeats what a message says")


class ChatTokenizer(DocumentTokenizer):
    """The tokenizer of text formatted by its chat template: it adds no special tokens.

    With ``prepend_bos`` every window begins with one BOS token: a BOS that the template writes at
    the beginning of a conversation is that token, and has no row of its own.

    Parameters
    ----------
    tokenizer, identity, prepend_bos
        See :class:`~actlas.pipeline.corpus.tokenization.DocumentTokenizer`.
    """

    def __init__(self, tokenizer: Any, identity: str, *, prepend_bos: bool = False) -> None:
        super().__init__(tokenizer, identity, prepend_bos=prepend_bos)
        self._backend.encode_special_tokens = False
        template = chat_template(tokenizer, identity)
        digest = hashlib.sha256(f"{self.spec.sha256}\n{template}".encode())
        self._bos = bos_id(tokenizer, identity) if prepend_bos else None
        if self._bos is not None:
            digest.update(f"\nBOS {self._bos}".encode())
        prefix = () if self._bos is None else (self._bos,)
        self.spec = self.spec.model_copy(
            update={"sha256": digest.hexdigest(), "prefix_ids": prefix, "suffix_ids": ()}
        )

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Yield the kept tokens of each text."""
        for tokens in super().tokenize(texts):
            begins = len(tokens) > 0 and int(tokens.token_id[0]) == self._bos
            yield _without_first(tokens) if begins else tokens


def _without_first(tokens: Tokens) -> Tokens:
    """Return tokens without the first one, whose characters become the next one's."""
    char_start = tokens.char_start[1:].copy()
    char_start[:1] = 0
    char_stop = tokens.char_stop if len(char_start) else 0
    return Tokens(tokens.token_id[1:], char_start, char_stop)


def chat_template(tokenizer: Any, identity: str) -> str:
    """Return a tokenizer's chat template.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The tokenizer.
    identity : str
        The tokenizer's name, for messages.

    Raises
    ------
    ModelError
        The tokenizer has no chat template.
    """
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            f"{identity}: this tokenizer has no chat template to format messages with. "
            "Expected an instruction-tuned model's: name one with --tokenizer, or give a corpus "
            "of texts and --text-field.",
            field="messages_field",
        ) from error
    return template


class Chat:
    """Formats conversations with a chat template, and locates each message in the text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        A tokenizer with a chat template.
    identity : str
        The tokenizer's id in the plan.

    Raises
    ------
    ModelError
        The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, identity: str) -> None:
        chat_template(tokenizer, identity)
        self._tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        added = [token for token in backend.get_added_tokens_decoder().values() if token.special]
        folded = backend.normalizer is not None and any(token.normalized for token in added)
        strings = sorted({token.content for token in added}, key=len, reverse=True)
        pattern = "|".join(map(re.escape, strings)) or r"(?!)"
        self._special = re.compile(f"(?=({pattern}))", re.IGNORECASE if folded else 0)

    def format(self, value: Any) -> tuple[str, tuple[Span, ...]] | Unreadable:
        """Return a conversation's text and the spans of its messages, named by role.

        Parameters
        ----------
        value : list of {role, content}
            The messages. A content is a string, or a list of ``{"type": "text", "text": ...}``,
            whose texts are joined by line feeds.

        Returns
        -------
        (str, tuple of Span) or Unreadable
            The text and the spans, or the reason why the record is no document.
        """
        messages = _messages(value)
        if isinstance(messages, Unreadable):
            return messages
        beside = ({k: v for k, v in message.items() if k != "content"} for message in messages)
        if any(self._special.search(string) for string in _strings(list(beside))):
            return _SPECIAL
        text = self._render(messages)
        if isinstance(text, Unreadable):
            return text
        spans = self._spans(messages, text)
        if isinstance(spans, Unreadable):
            return spans
        for match in self._special.finditer(text):
            start, stop = match.span(1)
            if any(span.start < stop and start < span.stop for span in spans):
                return _SPECIAL
        return text, spans

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str | Unreadable:
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            return Unreadable(f"refused by the chat template ({str(error)[:100]})")
        return str(text)

    def _spans(
        self, messages: Sequence[Mapping[str, Any]], text: str
    ) -> tuple[Span, ...] | Unreadable:
        """Locate each content, by formatting the same messages with marks in place of contents."""
        marks = [f"actlas{i:06d}mark" for i in range(len(messages))]
        marked = [
            {**message, "content": mark} if message["content"] else message
            for message, mark in zip(messages, marks, strict=True)
        ]
        layout = self._render(marked)
        if isinstance(layout, Unreadable):
            return _CHANGED
        spoken = [i for i, message in enumerate(messages) if message["content"]]
        if any(layout.count(marks[i]) != 1 for i in spoken):
            return _CHANGED
        spoken.sort(key=lambda i: layout.index(marks[i]))
        edges = [0]
        for i in spoken:
            edges += [layout.index(marks[i]), layout.index(marks[i]) + len(marks[i])]
        around = [layout[a:b] for a, b in list(pairwise([*edges, len(layout)]))[::2]]
        if not text.startswith(around[0]):
            return _CHANGED
        spans, at = [], len(around[0])
        for i, behind in zip(spoken, around[1:], strict=True):
            content = messages[i]["content"]
            for form in (content, content.rstrip(), content.lstrip(), content.strip()):
                if text.startswith(form + behind, at):
                    break
            else:
                return _CHANGED
            if form:
                spans.append(Span(at, at + len(form), messages[i]["role"]))
            at += len(form) + len(behind)
        return tuple(spans) if at == len(text) else _CHANGED


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a value at any depth, including names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _strings(inner)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for inner in value:
            yield from _strings(inner)


def _messages(value: Any) -> list[dict[str, Any]] | Unreadable:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return Unreadable("no list of messages")
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
            return Unreadable("a message without a role")
        content = item.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = [_text_of(part) for part in content]
            content = "\n".join(text for text in texts if text is not None)
            if None in texts:
                return Unreadable("a message with parts that are no text")
        if content is not None and not isinstance(content, str):
            return Unreadable("a message whose content is no string")
        # A table gives every message all fields; those that are None are not fields of the message.
        message = {name: inner for name, inner in item.items() if inner is not None}
        messages.append({**message, "content": content or ""})
    return messages


def _text_of(part: Any) -> str | None:
    if not isinstance(part, Mapping) or part.get("type", "text") != "text":
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
