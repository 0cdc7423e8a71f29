"""Tiny random models of many architectures, and what a reader of their source knows of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from actlas.pipeline.model.config import build_skeleton, quiet

# Models this small only make threads wait for each other.
torch.set_num_threads(1)

VOCABULARY = 97
N_LAYERS = 3
WIDTH = 32
KINDS = frozenset(
    {"resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post"}
)
_HIDDEN = frozenset({"mlp_hidden"})
_MIDDLE = frozenset({"resid_mid"})
_OUTS = frozenset({"attn_out", "mlp_out"})

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NO_GROUPS = {**TEXT, "num_key_value_heads": 4}
_HEADS = {**TEXT, "head_dim": 8, "sliding_window": 4}
_GPT: dict[str, Any] = {
    "n_embd": WIDTH,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "encoder": "AutoModel",
    "image": "AutoModel",
    "mixed": "AutoModelForImageTextToText",
}


@dataclass(frozen=True)
class Animal:
    """A model of the zoo.

    ``attention`` and ``mlp`` are the paths in a block of the modules whose outputs are, before
    any norm or scale, ``attn_z`` and ``mlp_hidden`` times a matrix. ``norm`` is the path of the
    norm that the last hidden state of transformers has behind it; None where it has none.
    ``absent`` are the kinds that it has in no layer.
    """

    config: str
    sizes: dict[str, Any]
    blocks: str
    attention: str
    mlp: str
    norm: str | None
    form: str = "sequential"
    kind: str = "causal"
    absent: frozenset[str] = field(default_factory=frozenset)


def _llama(config: str, sizes: dict[str, Any], **other: Any) -> Animal:
    return Animal(config, sizes, "model.layers", "self_attn", "mlp", "model.norm", **other)


ZOO: dict[str, Animal] = {
    "llama": _llama("LlamaConfig", TEXT),
    "mistral": _llama("MistralConfig", {**TEXT, "sliding_window": 4}),
    "qwen2": _llama("Qwen2Config", TEXT),
    "qwen3": _llama("Qwen3Config", {**TEXT, "head_dim": 8}),
    "gemma": _llama("GemmaConfig", {**TEXT, "head_dim": 8}),
    "gemma2": _llama("Gemma2Config", _HEADS),
    "gemma3": _llama("Gemma3TextConfig", _HEADS),
    "phi": Animal(
        "PhiConfig",
        _NO_GROUPS,
        "model.layers",
        "self_attn",
        "mlp",
        "model.final_layernorm",
        form="parallel",
        absent=_MIDDLE,
    ),
    "phi3": _llama("Phi3Config", TEXT),
    "olmo2": _llama("Olmo2Config", TEXT),
    "olmo3": _llama("Olmo3Config", {**TEXT, "sliding_window": 4}),
    "glm4": _llama("Glm4Config", {**TEXT, "head_dim": 8}),
    "exaone4": _llama("Exaone4Config", {**TEXT, "head_dim": 8, "sliding_window": 4}),
    "granite": _llama("GraniteConfig", {**TEXT, "residual_multiplier": 0.22}, absent=_OUTS),
    "cohere": _llama("CohereConfig", TEXT, form="parallel", absent=_MIDDLE),
    "gpt2": Animal("GPT2Config", _GPT, "transformer.h", "attn", "mlp", "transformer.ln_f"),
    "neox": Animal(
        "GPTNeoXConfig",
        _NO_GROUPS,
        "gpt_neox.layers",
        "attention",
        "mlp",
        "gpt_neox.final_layer_norm",
        form="parallel",
        absent=_MIDDLE,
    ),
    "neox-sequential": Animal(
        "GPTNeoXConfig",
        {**_NO_GROUPS, "use_parallel_residual": False},
        "gpt_neox.layers",
        "attention",
        "mlp",
        "gpt_neox.final_layer_norm",
    ),
    "gptj": Animal(
        "GPTJConfig",
        {**_GPT, "rotary_dim": 4},
        "transformer.h",
        "attn",
        "mlp",
        "transformer.ln_f",
        form="parallel",
        absent=_MIDDLE,
    ),
    "falcon": Animal(
        "FalconConfig",
        _NO_GROUPS,
        "transformer.h",
        "self_attention",
        "mlp",
        "transformer.ln_f",
        form="parallel",
        absent=_MIDDLE,
    ),
    "bloom": Animal(
        "BloomConfig",
        {"hidden_size": WIDTH, "n_layer": N_LAYERS, "n_head": 4, "vocab_size": VOCABULARY},
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "transformer.ln_f",
    ),
    "opt": Animal(
        "OPTConfig",
        {
            "hidden_size": WIDTH,
            "ffn_dim": 48,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": WIDTH,
        },
        "model.decoder.layers",
        "self_attn",
        "fc2",
        "model.decoder.final_layer_norm",
    ),
    "mixtral": _llama("MixtralConfig", {**TEXT, **_EXPERTS}, absent=_HIDDEN),
    "qwen3-moe": _llama("Qwen3MoeConfig", {**TEXT, **_EXPERTS, "head_dim": 8}, absent=_HIDDEN),
    "qwen2-moe": _llama(
        "Qwen2MoeConfig",
        {**TEXT, **_EXPERTS, "shared_expert_intermediate_size": 16},
        absent=_HIDDEN,
    ),
    "gpt-oss": _llama("GptOssConfig", {**_HEADS, **_EXPERTS}, absent=_HIDDEN),
    "bert": Animal(
        "BertConfig",
        _NO_GROUPS,
        "encoder.layer",
        "attention.output.dense",
        "output.dense",
        None,
        form="post-norm",
        kind="encoder",
    ),
    "roberta": Animal(
        "RobertaConfig",
        {**_NO_GROUPS, "pad_token_id": 1},
        "encoder.layer",
        "attention.output.dense",
        "output.dense",
        None,
        form="post-norm",
        kind="encoder",
    ),
    "distilbert": Animal(
        "DistilBertConfig",
        {
            "dim": WIDTH,
            "hidden_dim": 48,
            "n_layers": N_LAYERS,
            "n_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
        },
        "transformer.layer",
        "attention",
        "ffn",
        None,
        form="post-norm",
        kind="encoder",
    ),
    "modernbert": Animal(
        "ModernBertConfig", _NO_GROUPS, "layers", "attn", "mlp", "final_norm", kind="encoder"
    ),
    "deberta": Animal(
        "DebertaV2Config",
        _NO_GROUPS,
        "encoder.layer",
        "attention.output.dense",
        "output.dense",
        None,
        form="post-norm",
        kind="encoder",
    ),
    "vit": Animal("ViTConfig", _IMAGE, "layers", "attention", "mlp", None, kind="image"),
    "clip": Animal(
        "CLIPVisionConfig", _IMAGE, "encoder.layers", "self_attn", "mlp", None, kind="image"
    ),
    "siglip": Animal(
        "SiglipVisionConfig", _IMAGE, "encoder.layers", "self_attn", "mlp", None, kind="image"
    ),
    "dinov2": Animal(
        "Dinov2Config",
        {**_IMAGE, "mlp_ratio": 2},
        "encoder.layer",
        "attention",
        "mlp",
        None,
        kind="image",
    ),
    "beit": Animal(
        "BeitConfig", _IMAGE, "layers", "attention", "mlp", None, kind="image", absent=_OUTS
    ),
    "llava": Animal(
        "LlavaConfig",
        {"vision": _IMAGE, "text": TEXT, "image_token_index": 96},
        "model.language_model.layers",
        "self_attn",
        "mlp",
        "model.language_model.norm",
        kind="mixed",
    ),
    "qwen2-vl": Animal(
        "Qwen2VLConfig",
        {
            "vision_config": {
                "depth": N_LAYERS,
                "embed_dim": 32,
                "hidden_size": WIDTH,
                "num_heads": 4,
                "patch_size": 8,
            },
            "text_config": {
                **TEXT,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
            },
        },
        "model.language_model.layers",
        "self_attn",
        "mlp",
        "model.language_model.norm",
        kind="mixed",
    ),
}


def config_of(name: str) -> Any:
    """The configuration of a tiny model."""
    import transformers

    animal, sizes = ZOO[name], dict(ZOO[name].sizes)
    with quiet():
        if "vision" in sizes:
            sizes["vision_config"] = transformers.CLIPVisionConfig(**sizes.pop("vision"))
            sizes["text_config"] = transformers.LlamaConfig(**sizes.pop("text"))
        return getattr(transformers, animal.config)(**sizes)


def build(name: str) -> Any:
    """A tiny model with random weights, large enough that every part matters."""
    import transformers

    return with_random_weights(getattr(transformers, _CLASSES[ZOO[name].kind]), config_of(name))


def with_random_weights(auto_class: Any, config: Any) -> Any:
    """A model of this configuration, its norms and scales random too."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        with quiet():
            model = auto_class.from_config(config)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3)
                elif "bias" in path:
                    parameter.normal_(0, 0.1)
                else:
                    parameter.uniform_(0.5, 1.5)
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


@cache
def skeleton(name: str) -> Any:
    """The same model on the meta device, as a plan has it."""
    from transformers import AutoModelForImageTextToText

    config = config_of(name)
    kind = ZOO[name].kind
    if kind == "mixed":
        return build_skeleton(
            config, AutoModelForImageTextToText._model_mapping[type(config)].__name__
        )
    return build_skeleton(config, "XForCausalLM" if kind == "causal" else "XModel")


def inputs_of(name: str, n_positions: int = 9) -> dict[str, torch.Tensor]:
    """Two sequences of random tokens, or two random images."""
    generator = torch.Generator().manual_seed(1)
    if ZOO[name].kind == "image":
        return {"pixel_values": torch.randn((2, 3, 16, 16), generator=generator)}
    tokens = torch.randint(3, VOCABULARY - 1, (2, n_positions), generator=generator)
    return {"input_ids": tokens}
