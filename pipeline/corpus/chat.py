"""Corpora of messages: laid out by the tokenizer's own chat template.

A document is one conversation, and its text is what the template makes of it. The template's
special strings become the special tokens that they stand for. A message must not contain one: it
could then pretend to be another speaker's, so such a record is skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jinja2

from actlas.pipeline.corpus.readers import Unreadable
from actlas.pipeline.corpus.spans import Part
from actlas.pipeline.corpus.tokenization import DocumentTokenizer
from actlas.store.errors import ModelError

_SPECIAL = Unreadable("a message contains a special token's string")

_CHANGED = Unreadable("the chat template changes, drops or repeats what a message says")


class ChatTokenizer(DocumentTokenizer):
    """A tokenizer for text that its chat template has laid out: nothing is added around it.

    Parameters
    ----------
    tokenizer, identity
        See :class:`~actlas.pipeline.corpus.tokenization.DocumentTokenizer`.
    """

    def __init__(self, tokenizer: Any, identity: str) -> None:
        super().__init__(tokenizer, identity)
        self._backend.encode_special_tokens = False
        template = chat_template(tokenizer, identity)
        digest = hashlib.sha256(f"{self.spec.sha256}\n{template}".encode())
        self.spec = self.spec.model_copy(
            update={"sha256": digest.hexdigest(), "prefix_ids": (), "suffix_ids": ()}
        )


def chat_template(tokenizer: Any, identity: str) -> str:
    """Return a tokenizer's chat template.

    Raises
    ------
    ModelError
        It has none.
    """
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            f"{identity}: this tokenizer has no chat template, so messages cannot be laid out. "
            "Expected an instruction-tuned model's: name one with --tokenizer, or give a corpus "
            "of texts and --text-field.",
            field="messages_field",
        ) from error
    return template


class Chat:
    """Lays conversations out, and says where in the text each message stands.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    identity : str
        What the plan calls it.

    Raises
    ------
    ModelError
        It has no chat template.
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

    def lay_out(self, value: Any) -> tuple[str, tuple[Part, ...]] | Unreadable:
        """Return a conversation's text, and the part of it that each message is, by role.

        Parameters
        ----------
        value : list of {role, content}
            A content is a string, or a list of ``{"type": "text", "text": ...}``, which are joined
            by line feeds.
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
        parts = self._parts(messages, text)
        if isinstance(parts, Unreadable):
            return parts
        for match in self._special.finditer(text):
            start, stop = match.span(1)
            if any(part.start < stop and start < part.stop for part in parts):
                return _SPECIAL
        return text, parts

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str | Unreadable:
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            return Unreadable(f"refused by the chat template ({str(error)[:100]})")
        return str(text)

    def _parts(
        self, messages: Sequence[Mapping[str, Any]], text: str
    ) -> tuple[Part, ...] | Unreadable:
        """Find each content: the same messages with marks in their place show the template."""
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
        parts, at = [], len(around[0])
        for i, behind in zip(spoken, around[1:], strict=True):
            content = messages[i]["content"]
            for form in (content, content.rstrip(), content.lstrip(), content.strip()):
                if text.startswith(form + behind, at):
                    break
            else:
                return _CHANGED
            if form:
                parts.append(Part(at, at + len(form), messages[i]["role"]))
            at += len(form) + len(behind)
        return tuple(parts) if at == len(text) else _CHANGED


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a value, at any depth, names of fields too."""
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
        # What a table adds where one message has a field and another has not is no field.
        message = {name: inner for name, inner in item.items() if inner is not None}
        messages.append({**message, "content": content or ""})
    return messages


def _text_of(part: Any) -> str | None:
    if not isinstance(part, Mapping) or part.get("type", "text") != "text":
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
