"""A tiny model of any architecture that transformers can build, from its default configuration.

The sizes in a default configuration are recognized by the words of their names and made small. What
cannot be built like this is left out with the exception's text.
"""

from __future__ import annotations

import inspect
import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from actlas.pipeline.model.config import auto_class, quiet
from support.architectures import with_random_weights

VOCABULARY = 97
N_LAYERS = 3
MAX_PARAMETERS = 30_000_000
"""Above this a model is not tiny: its sizes were not recognized."""

# The first pattern that a name fits gives its size.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size$|^n_words$|vocab_size_per_layer_input$", VOCABULARY),
    (r"mamba_d_head$", 16),
    (r"^d_head$|attention_head_size$", 8),
    (r"heads?$|heads?_kv$", 4),
    (r"^qk_head_dim$", 16),
    (r"^(d_kv|attention_head_dim)$", 8),
    (r"^(kv|q)_lora_rank$", 16),
    (r"^(rotary_dim|rope_head_dim)$", 4),
    (r"head_dim$", 8),
    (r"experts_per_tok$|^top_k$|^moe_topk$|^moe_k$|topk_group$|top_k_experts$", 2),
    (r"(num|n)_(local_|routed_|total_)?experts$|^moe_num_experts$", 4),
    (r"^n_group$|num_expert_group", 2),
    (r"n_groups$", 1),
    (r"^attn_layer_period$|full_attention_interval$|^expert_layer_period$", 2),
    (r"^attn_layer_offset$|^expert_layer_offset$", 1),
    (r"shared_experts$", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"^(num_hidden_layers|n_layers?|num_layers|depth|encoder_layers|num_blocks)$", N_LAYERS),
    (r"_layers$|_depth$|_blocks$", 2),
    (r"mlp_ratio$|expansion_factor$|^expand$|_ratio$", 2),
    (r"intermediate|ffn_dim|ffn_hidden|d_ff|inner|^mlp_dim|feed_forward", 48),
    (r"max_.*position|^n_positions$|^n_ctx$|max_seq|max_length$|context_length|seq_length$", 64),
    (r"position_buckets$|max_relative", 16),
    (r"(chunk|block)_(size|length)$|_chunk_length$|landmarks$|window(_size)?$|^segment_means", 8),
    (r"hidden_size|^d_model$|^(emb_)?dim$|n_embd|embed.*dim|^width$|_dim$|emb.*size|^d_embed$", 32),
    (r"^lru_width$", 32),
    (r"image_size$", 16),
    (r"patch_size$", 8),
    (r"type_vocab_size$", 2),
)
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}


_MROPE = re.compile(r"_vl|glm4v|glm46v|glm_ocr|glm_image|glmga|omni_thinker")

# What no rule about names gives: parts that must fit each other.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "attn_layers": ["local", "lsh", "local"],
        "num_buckets": 2,
    },
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0, "mask_token_id": 32},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention"]},
    "lilt": {"hidden_size": 48},
    "xmod": {"default_language": "en_XX"},
    "nemotron": {"num_key_value_heads": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "swin": {"embed_dim": 24, "image_size": 64},
    "swinv2": {"embed_dim": 24, "image_size": 64},
    "donut-swin": {"embed_dim": 24, "image_size": 64},
    "maskformer-swin": {"embed_dim": 24, "image_size": 64},
    "swin2sr": {"embed_dim": 24, "image_size": 64},
    "mimi": {"upsample_groups": 32},
    "mimi_decoder": {"upsample_groups": 32},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 32},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 32},
    "granite_speech5_ctc": {"context_size": 32},
    "granite_speech5_encoder": {"context_size": 32},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
}


class NotTinyError(Exception):
    """No tiny model of an architecture could be built; the text says why."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in this thread, the main one, after so many seconds of processor."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@cache
def model_types() -> tuple[str, ...]:
    """Every model type of which transformers has a base model."""
    from transformers.models.auto import modeling_auto as auto

    return tuple(sorted(auto.MODEL_MAPPING_NAMES))


def tiny_config(model_type: str) -> Any:
    """A configuration of this type with small sizes."""
    from transformers import CONFIG_MAPPING

    return _small(CONFIG_MAPPING[model_type])


def _small(kind: Any) -> Any:
    default = kind()
    changes: dict[str, Any] = {}
    for name, value in vars(default).items():
        small = _small_value(name, value)
        if small is not None:
            changes[name] = small
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            changes[name] = _small(type(part)).to_dict()
    rotary = getattr(default, "rope_parameters", None)
    if _MROPE.search(kind.model_type) and isinstance(rotary, dict):
        whole = rotary.get("partial_rotary_factor", 1) == 1 and "glm4v_moe" not in kind.model_type
        changes["rope_parameters"] = {**rotary, "mrope_section": [2, 1, 1] if whole else [1, 1, 0]}
    changes |= _fitting_heads(default)
    changes |= _OVERRIDES.get(kind.model_type, {})
    accepted = inspect.signature(kind.__init__).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    return kind(**{k: v for k, v in changes.items() if open_ended or k in accepted})


def _fitting_heads(default: Any) -> dict[str, int]:
    """Fewer heads of keys and values where the default has fewer, and the heads' size."""
    found: dict[str, int] = {}
    n_heads, n_pairs = (
        vars(default).get(name) for name in ("num_attention_heads", "num_key_value_heads")
    )
    if isinstance(n_heads, int) and isinstance(n_pairs, int):
        found["num_key_value_heads"] = 4 if n_pairs == n_heads else min(2, n_pairs)
    if vars(default).get("head_dim", 0) is None:
        found["head_dim"] = 8
    return found


def _small_value(name: str, value: Any) -> Any:
    if name in _IDS:
        return _IDS[name]
    if name.startswith("_") or isinstance(value, bool) or not isinstance(value, int):
        return None
    if re.search(r"token_(id|index)$", name):
        return min(value, VOCABULARY - 1) if value >= 0 else None
    small = next((size for pattern, size in _SIZES if re.search(pattern, name)), None)
    return None if small is None or value <= 0 else min(small, value)


def architecture_for(model_type: str) -> str:
    """The class with a causal head or for images with text where transformers has one.

    A model type that is known for masked language modelling is taken without a head.
    """
    from transformers.models.auto import modeling_auto as auto

    names: Any = auto.MODEL_MAPPING_NAMES[model_type]
    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        names = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
    elif (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        names = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return names if isinstance(names, str) else names[0]


def tiny_model(model_type: str) -> Any:
    """A tiny model with random weights of moderate size, in evaluation mode."""
    loader = auto_class(architecture_for(model_type))
    with quiet():
        config = tiny_config(model_type)
        with torch.device("meta"):
            size = sum(p.numel() for p in loader.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotTinyError(f"{size:,} parameters: its sizes have unknown names")
    model = with_random_weights(loader, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # so that a deep network does not magnify rounding
                n_in = max(1, math.prod(parameter.shape[1:]))
                parameter.mul_(min(1.0, 1 / (0.3 * math.sqrt(n_in))))
    return model
