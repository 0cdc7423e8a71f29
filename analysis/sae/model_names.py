"""Names of models as TransformerLens, SAELens and the hub write them."""

from __future__ import annotations

import re

_ALIASES = {
    "gpt2small": "gpt2",
    "distillgpt2": "distilgpt2",
    "pythia": "pythia70m",
    "pythia19m": "pythia70m",
    "pythia125m": "pythia160m",
    "pythia350m": "pythia410m",
    "pythia800m": "pythia1b",
    "pythia1.3b": "pythia1.4b",
    "pythia2.7b": "pythia2.8b",
    "pythia6.7b": "pythia6.9b",
    "pythia13b": "pythia12b",
    "gptneosmall": "gptneo125m",
    "gptneomedium": "gptneo1.3b",
    "gptneolarge": "gptneo2.7b",
    "gptj": "gptj6b",
    "gptneox": "gptneox20b",
    "mistral7b": "mistral7bv0.1",
    "mistral7binstruct": "mistral7binstructv0.1",
    "mixtral8x7b": "mixtral8x7bv0.1",
    "olmo21b": "olmo204251b",
    "olmo27b": "olmo211247b",
    "phi3": "phi3mini4kinstruct",
    "metallama38b": "llama38b",
    "metallama38binstruct": "llama38binstruct",
    "metallama3.18b": "llama3.18b",
    "metallama3.18binstruct": "llama3.18binstruct",
}
"""TransformerLens's short names of models whose name on the hub differs, both without marks."""


def plain_name(name: str) -> str:
    """Return a model's name without owner and marks, and TransformerLens's names as the hub's.

    Parameters
    ----------
    name : str
        A name on the hub, TransformerLens's short name, or a folder.

    Examples
    --------
    >>> plain_name("gpt2-small"), plain_name("openai-community/gpt2")
    ('gpt2', 'gpt2')
    >>> plain_name("pythia-70m-deduped"), plain_name("/models/EleutherAI/pythia-70m-deduped/")
    ('pythia70mdeduped', 'pythia70mdeduped')
    >>> plain_name("hub/models--google--gemma-2-2b/snapshots/c5ebcd40d208")
    'gemma22b'
    """
    cached = re.search(r"models--(?:.+--)?([^/]+?)/snapshots/", name)
    last = cached[1] if cached else name.rstrip("/").rsplit("/", 1)[-1].removeprefix("builtin:")
    plain = re.sub(r"[^a-z0-9.]", "", last.lower())
    plain = re.sub(r"(?<=[0-9]b)(chat|instruct)?hf$", r"\1", plain)
    head = re.match(r"(pythia[0-9.]+[mb])(.*)", plain)
    if head:
        return _ALIASES.get(head[1], head[1]) + head[2]
    return _ALIASES.get(plain, plain)
