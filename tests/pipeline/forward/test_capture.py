"""Hooks: read what they should, end the pass early, and always come off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import CONFIGS, build, oracle

from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.names import resolve
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

TOKENS = torch.tensor([[1, 5, 9, 33, 4, 7]])
MAIN = ["llama", "gpt2", "neox"]


@pytest.fixture(scope="module", params=MAIN)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def n_hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def executed(model: Any, call: Any) -> set[str]:
    """The modules without children that ran during a call."""
    ran: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda _m, _a, path=path: ran.add(path))
        for path, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return ran


def test_every_block_is_as_transformers_itself_says(model: Any) -> None:
    before = n_hooks(model)
    with torch.inference_mode(), Capture(model, resolve(model, ["resid_p*.*"])) as capture:
        found = capture(TOKENS)
        assert n_hooks(model) > before
    assert n_hooks(model) == before
    truth = oracle(model, TOKENS[0].tolist())
    assert list(found) == [f"resid_{s}.{i}" for i in range(3) for s in ("pre", "post")]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor[0], torch.from_numpy(truth[name]))
    for layer in (1, 2):
        assert torch.equal(found[f"resid_pre.{layer}"], found[f"resid_post.{layer - 1}"])


def test_nothing_after_the_deepest_hookpoint_runs(model: Any) -> None:
    hookpoints = resolve(model, ["resid_post.1"])
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        ran = executed(model, lambda: capture(TOKENS))
        assert capture.output is None
    blocks = find_blocks(model)
    assert any(path.startswith(f"{blocks}.1.") for path in ran)
    late = [path for path in ran if path.startswith(f"{blocks}.2.")]
    norms = [path for path in ran if path.endswith(("model.norm", "ln_f", "final_layer_norm"))]
    assert not late
    assert not norms
    assert not ran & {"lm_head", "embed_out"}
    assert ran < executed(model, lambda: model(TOKENS))


def test_the_last_block_ends_the_pass_before_the_final_norm(model: Any) -> None:
    with torch.inference_mode(), Capture(model, resolve(model, ["resid_post.last"])) as capture:
        ran = executed(model, lambda: capture(TOKENS))
    full = executed(model, lambda: model(TOKENS))
    blocks = find_blocks(model)
    after = {path for path in full - ran if not path.startswith(blocks)}
    assert any("norm" in path or "ln_f" in path for path in after)
    assert after & {"lm_head", "embed_out"}


@pytest.mark.parametrize(
    ("patterns", "last_block"),
    [
        (["resid_pre.1"], 0),  # block 1 does not start
        (["resid_pre.2", "resid_post.0"], 1),
        (["resid_pre.1", "resid_post.1", "embed"], 1),
        (["embed"], -1),
    ],
)
def test_inputs_and_outputs_mixed(model: Any, patterns: list[str], last_block: int) -> None:
    hookpoints = resolve(model, patterns)
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        ran = executed(model, lambda: capture(TOKENS))
    blocks = find_blocks(model)
    reached = {int(path[len(blocks) + 1 :].split(".")[0]) for path in ran if blocks + "." in path}
    assert reached == set(range(last_block + 1))


def test_without_early_stop_the_whole_model_runs(model: Any) -> None:
    hookpoints = resolve(model, ["resid_post.0"])
    with torch.inference_mode(), Capture(model, hookpoints, stop_early=False) as capture:
        capture(TOKENS)
        logits = capture.output.logits
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(TOKENS).logits)


def test_a_module_path_gives_the_first_of_a_tuple() -> None:
    model = build("llama")
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].self_attn.register_forward_hook(
        lambda _m, _a, output: seen.append(output[0])
    )
    with torch.inference_mode(), Capture(model, resolve(model, ["model.layers.1.self_attn"])) as c:
        found = c(TOKENS)
    handle.remove()
    assert torch.equal(found["model.layers.1.self_attn"], seen[-1])


def test_gradients_flow_to_what_was_captured() -> None:
    model = build("llama")
    hookpoints = resolve(model, ["resid_pre.1", "resid_post.2"])
    with Capture(model, hookpoints) as capture:
        found = capture(TOKENS)
    found["resid_pre.1"].retain_grad()
    found["resid_post.2"].square().sum().backward()
    assert found["resid_pre.1"].grad is not None
    assert float(found["resid_pre.1"].grad.abs().sum()) > 0


def test_what_read_returns_is_kept_and_later_writes_do_not_reach_it() -> None:
    model = build("llama")
    hookpoints = resolve(model, ["resid_post.0", "resid_post.1"])
    handle = model.model.layers[1].register_forward_pre_hook(lambda _m, args: args[0].mul_(0))
    try:
        with torch.inference_mode(), Capture(model, hookpoints) as capture:
            copied = capture(TOKENS, read=lambda _name, tensor: tensor.clone())
    finally:
        handle.remove()
    truth = oracle(model, TOKENS[0].tolist())["resid_post.0"]
    torch.testing.assert_close(copied["resid_post.0"][0], torch.from_numpy(truth))


def test_others_may_run_the_model_while_hooks_are_in() -> None:
    model = build("llama")
    with torch.inference_mode(), Capture(model, resolve(model, ["resid_post.0"])) as capture:
        whole = model(TOKENS).logits
        capture(TOKENS)
        assert torch.equal(whole, model(TOKENS).logits)


def test_hooks_come_off_when_the_model_raises() -> None:
    model = build("llama")
    before = n_hooks(model)
    with (
        pytest.raises(IndexError),
        torch.inference_mode(),
        Capture(model, resolve(model, ["resid_post.*"])) as capture,
    ):
        capture(torch.tensor([[10**6]]))
    assert n_hooks(model) == before


def test_hooks_come_off_when_reading_or_installing_fails() -> None:
    model = build("llama")
    before = n_hooks(model)
    good = resolve(model, ["resid_post.0"])[0]
    missing = HookpointSpec(name="x", module="model.layers.9", side="output", width=32)
    with pytest.raises(AttributeError), Capture(model, [good, missing]):
        pass
    assert n_hooks(model) == before
    with (
        pytest.raises(ZeroDivisionError),
        torch.inference_mode(),
        Capture(model, [good]) as capture,
    ):
        capture(TOKENS, read=lambda _name, _tensor: 1 // 0)
    assert n_hooks(model) == before


def test_a_wrong_width_and_an_unreached_module_are_refused() -> None:
    model = build("llama")
    good = resolve(model, ["resid_post.0"])[0]
    wide = good.model_copy(update={"width": 33})
    with pytest.raises(HookpointError, match=r"got \[1, 6, 32\].*\[1, 6, 33\]"):  # noqa: SIM117
        with torch.inference_mode(), Capture(model, [wide]) as capture:
            capture(TOKENS)
    idle = HookpointSpec(name="idle", module="model.layers", side="output", width=32)
    with pytest.raises(HookpointError, match="did not reach idle"):  # noqa: SIM117
        with torch.inference_mode(), Capture(model, [good, idle]) as capture:
            capture(TOKENS)


def test_it_is_used_in_a_with_statement() -> None:
    model = build("llama")
    with pytest.raises(RuntimeError, match="with statement"):
        Capture(model, resolve(model, ["resid_post.0"]))(TOKENS)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(MAIN)))
def test_other_architectures_agree_with_transformers(name: str) -> None:
    model = build(name)
    with torch.inference_mode(), Capture(model, resolve(model, ["resid_p*.*"])) as capture:
        found = capture(TOKENS)
    truth = oracle(model, TOKENS[0].tolist())
    for key, tensor in found.items():
        torch.testing.assert_close(tensor[0], torch.from_numpy(truth[key]))
