"""Tiny random models saved to a folder, stores planned over them, and an oracle of their rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.config import build_skeleton, is_causal, quiet
from actlas.pipeline.model.describe import load_config
from actlas.pipeline.model.files import file_sha256, weight_files, weights_sha256
from actlas.pipeline.model.windows import context_length_of
from actlas.store.store import Store
from support.stores import Columns, create, plan_for

# Models this small only make threads wait for each other.
torch.set_num_threads(1)

VOCABULARY = 97
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NO_GROUPS = {**_SIZES, "num_key_value_heads": 4}
_GPT = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "AutoModelForCausalLM", _SIZES),
    "gpt2": ("GPT2Config", "AutoModelForCausalLM", _GPT),
    "neox": ("GPTNeoXConfig", "AutoModelForCausalLM", _NO_GROUPS),
    "mistral": ("MistralConfig", "AutoModelForCausalLM", {**_SIZES, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", "AutoModelForCausalLM", _SIZES),
    "qwen3": ("Qwen3Config", "AutoModelForCausalLM", {**_SIZES, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        "AutoModelForCausalLM",
        {**_SIZES, "head_dim": 8, "sliding_window": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "AutoModelForCausalLM",
        {**_SIZES, "head_dim": 8, "sliding_window": 8},
    ),
    "phi": ("PhiConfig", "AutoModelForCausalLM", _NO_GROUPS),
    "phi3": ("Phi3Config", "AutoModelForCausalLM", _SIZES),
    "olmo2": ("Olmo2Config", "AutoModelForCausalLM", _SIZES),
    "mixtral": ("MixtralConfig", "AutoModelForCausalLM", {**_SIZES, "num_local_experts": 4}),
    "opt": (
        "OPTConfig",
        "AutoModelForCausalLM",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
        },
    ),
    "bloom": (
        "BloomConfig",
        "AutoModelForCausalLM",
        {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY},
    ),
    "falcon": ("FalconConfig", "AutoModelForCausalLM", _NO_GROUPS),
    "bert": ("BertConfig", "AutoModel", _NO_GROUPS),
    "roberta": ("RobertaConfig", "AutoModel", {**_NO_GROUPS, "pad_token_id": 1}),
    "modernbert": ("ModernBertConfig", "AutoModel", _NO_GROUPS),
}


def config_of(name: str, **changes: Any) -> Any:
    """The configuration of a tiny model."""
    import transformers

    kind, _, sizes = CONFIGS[name]
    with quiet():
        return getattr(transformers, kind)(**{**sizes, **changes})


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny model with random weights large enough that attention matters."""
    import transformers

    config = config_of(name, **changes)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        with quiet():
            model = getattr(transformers, CONFIGS[name][1]).from_config(config)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3)
                elif "bias" in path:
                    parameter.normal_(0, 0.1)
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


def save(name: str, folder: Path, **changes: Any) -> Path:
    """A tiny model, saved as a user would have it."""
    with quiet():
        build(name, **changes).save_pretrained(folder)
    return folder


def documents(lengths: Sequence[int], vocabulary: int = VOCABULARY, seed: int = 0) -> Columns:
    """Documents of these many random tokens, none of them special."""
    rng = random.Random(seed)
    tokens = [[(rng.randrange(3, vocabulary), i) for i in range(n)] for n in lengths]
    return Columns(["x" * n for n in lengths], tokens)


def plan_store(
    path: Path, folder: Path, columns: Columns, patterns: Sequence[str], **changes: Any
) -> Store:
    """A store planned over a model's folder."""
    config = load_config(folder)
    architecture = config.architectures[0]
    skeleton = build_skeleton(config, architecture)
    text = config.get_text_config()
    windows = changes.get("windows", {"max_length": 16, "long": "window"})
    tokenizer = {"prefix_ids": (1,), "suffix_ids": (), **changes.pop("special", {})}
    plan = plan_for(
        columns,
        **{
            "model": {
                "id": str(folder),
                "revision": None,
                "architecture": architecture,
                "weights_sha256": weights_sha256(weight_files(folder)),
                "config_sha256": file_sha256(folder / "config.json"),
                "d_model": text.hidden_size,
                "n_layers": text.num_hidden_layers,
                "context_length": context_length_of(text, skeleton),
                "causal": is_causal(config, architecture),
                "compute_dtype": changes.pop("compute_dtype", "float32"),
            },
            "tokenizer": {"id": "-", "sha256": "-", "vocab_size": text.vocab_size, **tokenizer},
            "hookpoints": resolve(skeleton, patterns),
            "windows": windows,
            "dtype": "float32",
            "shard_rows": 64,
            **changes,
        },
    )
    return create(path, plan, columns)


def windows_of(store: Store) -> list[tuple[int, int, list[int]]]:
    """Every window of a store: its first token, the special tokens before it, what is fed.

    Written without :mod:`actlas.store.format.layout`, to be compared with it.
    """
    plan, found = store.plan, []
    prefix = [] if plan.keep_special else list(plan.tokenizer.prefix_ids)
    suffix = [] if plan.keep_special else list(plan.tokenizer.suffix_ids)
    content = plan.windows.max_length - len(prefix) - len(suffix)
    for doc_idx in range(len(store.documents)):
        start, stop = (int(t) for t in store.documents.starts(doc_idx, doc_idx + 1))
        for at in range(start, stop, content):
            ids = store.documents.token_ids(at, min(at + content, stop)).tolist()
            found.append((at, len(prefix), prefix + ids + suffix))
    return found


def oracle(model: Any, ids: list[int]) -> dict[str, NDArray[Any]]:
    """What transformers gives for one window alone: every block's input and output.

    The outputs are its own ``output_hidden_states``, of which the last one is after the final
    norm in most models: the last block's comes from a hook written here.
    """
    last: list[Any] = []
    blocks = model.get_submodule(find_blocks(model))
    handle = blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(output))
    try:
        with torch.no_grad(), quiet():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    finally:
        handle.remove()
    output = last[0][0] if isinstance(last[0], tuple) else last[0]
    states = [state[0].float().numpy() for state in (*hidden[: len(blocks)], output)]
    found = {f"resid_pre.{i}": states[i] for i in range(len(blocks))}
    return found | {f"resid_post.{i}": states[i + 1] for i in range(len(blocks))}


def expected(store: Store, model: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The rows that a store must hold, by token, from each window alone."""
    width = store.plan.model.d_model
    rows = {name: np.full((store.plan.n_tokens, width), np.nan, np.float32) for name in names}
    n_suffix = 0 if store.plan.keep_special else len(store.plan.tokenizer.suffix_ids)
    for at, n_prefix, ids in windows_of(store):
        states = oracle(model, ids)
        for name in names:
            kept = states[name][n_prefix : len(ids) - n_suffix]
            rows[name][at : at + len(kept)] = kept
    return rows


def worst(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """The largest difference, as a share of the truth's largest magnitude; inf where one is NaN."""
    if not np.isfinite(found.astype(np.float64)).all():
        return float("inf")
    difference = np.abs(found.astype(np.float64) - truth.astype(np.float64)).max()
    return float(difference / np.abs(truth).max())
