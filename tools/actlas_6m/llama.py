"""The model of ``actlas-6m``, and a lean training forward pass over its weights.

The pass is the same function as ``LlamaForCausalLM`` (the tests compare the two), with matrices
in bfloat16, the three attention projections and the two gated ones each as one product, the
residual stream and the loss in float32, and dropout masks handed in from outside. Compiled, it
is 1.6 times as fast on two cores as transformers' own pass under bfloat16 autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from actlas_6m.data import BOS_ID, CONTEXT, EOS_ID, MISSING_ID, PAD_ID, VOCABULARY_SIZE

N_HEADS, HEAD_DIM = 4, 64

ROTARY_THETA = 10_000.0


def new_model(seed: int) -> LlamaForCausalLM:
    """Make the untrained model; weights N(0, 0.02) from an own generator."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=N_HEADS * HEAD_DIM,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_THETA},
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model


def rotary_tables(n_positions: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of Su et al. (2021), in Llama's half-split order: (positions, head_dim)."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float64), inverse)
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos().float(), doubled.sin().float()


def dropout_masks(shape: tuple[int, int, int], rate: float, generator: torch.Generator) -> Tensor:
    """Draw masks (branches, sequences, d_model), one per sequence and channel.

    A mask that is constant along the sequence (Gal and Ghahramani, 2016) costs next to nothing.
    """
    keep = torch.empty(shape).bernoulli_(1.0 - rate, generator=generator)
    return keep / (1.0 - rate)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def next_token_loss(
    model: LlamaForCausalLM,
    tokens: Tensor,
    masks: Tensor,
    rotary: tuple[Tensor, Tensor],
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Mean cross-entropy in nats of the next token.

    Parameters
    ----------
    tokens
        Int64, shape (sequences, positions).
    masks
        From `dropout_masks`, two branches per block.
    rotary
        From `rotary_tables`.
    dtype
        Of the matrix products.
    """
    n_sequences, n_positions = tokens.shape
    config = model.config
    n_heads, eps = config.num_attention_heads, config.rms_norm_eps
    cos, sin = (table[:n_positions].to(dtype) for table in rotary)
    embedding = model.model.embed_tokens.weight
    x = F.embedding(tokens, embedding)
    for i, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        h = F.rms_norm(x, x.shape[-1:], block.input_layernorm.weight, eps).to(dtype)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.cat([projection.weight for projection in projections]).to(dtype)
        qkv = F.linear(h, weight).view(n_sequences, n_positions, 3, n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True
        )
        mixed = mixed.transpose(1, 2).reshape(n_sequences, n_positions, -1)
        x = x + F.linear(mixed, attention.o_proj.weight.to(dtype)) * masks[2 * i, :, None]
        h = F.rms_norm(x, x.shape[-1:], block.post_attention_layernorm.weight, eps).to(dtype)
        weight = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).to(dtype)
        gate, up = F.linear(h, weight).chunk(2, dim=-1)
        hidden = F.linear(F.silu(gate) * up, mlp.down_proj.weight.to(dtype))
        x = x + hidden * masks[2 * i + 1, :, None]
    h = F.rms_norm(x, x.shape[-1:], model.model.norm.weight, eps)[:, :-1].to(dtype)
    logits = F.linear(h, embedding.to(dtype)).float().flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    unscored = (targets == MISSING_ID) | (targets == PAD_ID)
    return F.cross_entropy(logits, targets.masked_fill(unscored, -100))
