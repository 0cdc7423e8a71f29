"""Models with freshly initialized weights: the control for the effects of training."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from actlas.pipeline.model.config import auto_class, loading

if TYPE_CHECKING:
    from torch import nn


def fresh_model(
    config: Any, architecture: str, seed: int, *, trust_remote_code: bool = False
) -> nn.Module:
    """Return a model with the initial weights that its own code draws before training.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    architecture : str
        The class to build, such as ``LlamaForCausalLM``.
    seed : int
        Seed of torch's generator on the CPU. The weights are drawn in float32.
    trust_remote_code : bool
        Whether code that comes with the model may run.

    Raises
    ------
    ModelError
        The architecture cannot be built.
    """
    import torch

    with loading("architecture", architecture), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = auto_class(architecture).from_config(
            config, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    return model


def state_sha256(model: nn.Module) -> str:
    """Return a sha256 over every parameter's name, dtype, shape and bytes, sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
