"""Hooks of TransformerLens hold the same numbers as the hookpoints that they are answered with."""

from __future__ import annotations

import pytest
import torch
from support.architectures import build

from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.hookpoints.names import resolve
from actlas.store.format.aliases import BLOCK_HOOKS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_their_hooks_and_our_hookpoints_are_the_same_tensors() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    ours = build("llama").eval()
    config = ours.config
    config_of_theirs = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=64,
        d_head=config.hidden_size // config.num_attention_heads,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn=config.hidden_act,
        eps=config.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=config.hidden_size // config.num_attention_heads,
        rotary_base=10_000,
        final_rms=True,
        gated_mlp=True,
        original_architecture="LlamaForCausalLM",
        device="cpu",
    )
    theirs = HookedTransformer(config_of_theirs)
    weights = convert_llama_weights(ours, config_of_theirs)
    theirs.load_state_dict(weights, strict=False)
    ids = torch.arange(2, 11)[None]
    _, cache = theirs.run_with_cache(ids, prepend_bos=False)
    hooks = ["hook_embed", *(f"blocks.1.{hook}" for hook in BLOCK_HOOKS)]
    hookpoints = [resolve(ours, [hook])[0] for hook in hooks]
    with torch.no_grad(), Capture(ours, hookpoints) as capture:
        found = capture(input_ids=ids, shape=(1, 9), read=lambda _name, tensor: tensor.clone())
    for hook, hookpoint in zip(hooks, hookpoints, strict=True):
        expected = cache[hook].reshape(1, 9, -1)
        actual = found[hookpoint.name].reshape(1, 9, -1)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
