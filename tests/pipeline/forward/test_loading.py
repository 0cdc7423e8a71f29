"""What is loaded of a model, where it goes, and that the rows are the same wherever it lies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import VOCABULARY, build, documents, expected, plan_store, save, worst

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.cost.memory import project
from actlas.pipeline.forward.load import load_model
from actlas.pipeline.hookpoints.reached import unreached
from actlas.pipeline.model.config import build_skeleton
from actlas.pipeline.model.describe import describe_model, load_config
from actlas.pipeline.model.untrained import fresh_model, state_sha256
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.errors import ConfigError, MemoryBudgetError, ModelError
from actlas.store.format.schema import ModelSpec
from actlas.store.store import Store

LENGTHS = [1, 0, 5, 40, 15, 33, 7]
TOKENS = torch.arange(12).reshape(2, 6) % VOCABULARY


def run_options(**options: Any) -> RunOptions:
    return RunOptions(**{"device": "cpu", "threads": 1, "tokens_per_batch": 64, **options})


def stored(store: Store, name: str) -> Any:
    rows = store.row_of(np.arange(store.plan.n_tokens))
    return store.activations[name][:][rows]


@pytest.mark.parametrize(
    ("name", "blocks", "head"),
    [
        ("llama", "model.layers", "lm_head"),
        ("neox", "gpt_neox.layers", "lm_head"),
        ("gpt2", "transformer.h", None),  # its head's weights are those of the embedding
        ("gemma2", "model.layers", None),
        ("mixtral", "model.layers", "lm_head"),
        ("bert", "encoder.layer", None),
    ],
)
@pytest.mark.parametrize(("hookpoint", "n_run"), [("resid_post.0", 1), ("resid_pre.1", 1)])
def test_blocks_never_reached_are_not_loaded(
    tmp_path: Path, name: str, blocks: str, head: str | None, hookpoint: str, n_run: int
) -> None:
    folder = save(name, tmp_path / name)
    store = plan_store(tmp_path / "run.zarr", folder, documents(LENGTHS), [hookpoint])
    config = load_config(folder)
    skeleton = build_skeleton(config, store.plan.model.architecture)
    left_out = unreached(skeleton, store.plan.hookpoints)
    expected_out = [f"{blocks}.{i}" for i in range(n_run + (hookpoint == "resid_pre.1"), 3)]
    assert list(left_out) == [*expected_out, *([head] if head else [])]
    model = load_model(store.plan.model, hookpoints=store.plan.hookpoints)
    meta = {path for path, parameter in model.named_parameters() if parameter.is_meta}
    assert meta == {
        path
        for path, _ in model.named_parameters()
        if any(path.startswith(f"{part}.") for part in left_out)
    }
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    whole = build(name)
    with torch.inference_mode():
        with Capture(model, store.plan.hookpoints) as capture:
            found = capture(TOKENS)[hookpoint]
        with Capture(whole, store.plan.hookpoints) as capture:
            assert torch.equal(found, capture(TOKENS)[hookpoint])


@pytest.mark.slow
def test_memory_counts_what_is_loaded_alone(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama")
    config = load_config(folder)
    weights = {}
    for hookpoint in ("resid_post.0", "resid_post.2", "lm_head"):
        plan = plan_store(tmp_path / hookpoint, folder, documents(LENGTHS), [hookpoint]).plan
        weights[hookpoint] = project(plan, config, run_options()).weights
    parameters = dict(build("llama").named_parameters())

    def n_bytes(*left_out: str) -> int:
        return 4 * sum(p.numel() for path, p in parameters.items() if not path.startswith(left_out))

    assert weights["lm_head"] == n_bytes(" ")
    assert weights["resid_post.2"] == n_bytes("lm_head")
    assert weights["resid_post.0"] == n_bytes("lm_head", "model.layers.1.", "model.layers.2.")
    plan = plan_store(tmp_path / "offload", folder, documents(LENGTHS), ["lm_head"]).plan
    assert project(plan, config, run_options(device_map="auto")).weights == 0


@pytest.mark.slow
@pytest.mark.parametrize("device_map", ["auto", "sequential"])
@pytest.mark.parametrize(("name", "n_bytes"), [("llama", 60_000), ("gpt2", 130_000)])
def test_weights_on_disk_give_the_same_rows(
    tmp_path: Path, name: str, n_bytes: int, device_map: str
) -> None:
    folder = save(name, tmp_path / name)
    patterns = ["embed", "resid_post.*"]
    store = plan_store(tmp_path / "run.zarr", folder, documents(LENGTHS), patterns)
    run = run_options(
        device_map=device_map,
        max_device_bytes=n_bytes,
        offload_folder=str(tmp_path / "offload" / "here"),
    )
    extractor = Extractor(store, run)
    where = {path: str(place) for path, place in extractor.model.hf_device_map.items()}  # type: ignore[union-attr, operator]
    assert set(where.values()) == {"cpu", "disk"}
    on_disk = [path for path, place in where.items() if place == "disk"]
    assert all(p.is_meta for p in extractor.model.get_submodule(on_disk[0]).parameters())
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    names = ["resid_post.0", "resid_post.1", "resid_post.2"]
    truth = expected(store, build(name), names)
    assert {n: worst(stored(store, n), truth[n]) < 1e-4 for n in names} == dict.fromkeys(
        names, True
    )


def test_loading_a_part_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while the model is in use: a killed worker would leave it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = save("llama", tmp_path / "llama")
    store = plan_store(tmp_path / "run.zarr", folder, documents(LENGTHS), ["resid_post.0"])
    for run in (None, run_options(device_map="sequential", max_device_bytes=40_000)):
        model = load_model(store.plan.model, hookpoints=store.plan.hookpoints, run=run)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert list((tmp_path / "tmp").iterdir()) == []


def test_a_device_map_leaves_out_what_is_not_reached(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama")
    store = plan_store(tmp_path / "run.zarr", folder, documents(LENGTHS), ["resid_post.0"])
    run = run_options(device_map="sequential")
    model = load_model(store.plan.model, hookpoints=store.plan.hookpoints, run=run)
    assert all(p.is_meta for p in model.get_submodule("model.layers.2").parameters())
    assert not any(p.is_meta for p in model.get_submodule("model.layers.0").parameters())


def describe(folder: Path, **options: Any) -> ModelSpec:
    return describe_model(PlanOptions(model=str(folder), corpus="-", **options)).spec


def test_the_untrained_twin(tmp_path: Path, shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    trained, first = describe(folder), describe(folder, untrained=1)
    assert first == describe(folder, untrained=1)
    assert first.untrained_seed == 1
    assert len({s.weights_sha256 for s in (trained, first, describe(folder, untrained=2))}) == 3
    model, real = load_model(first), load_model(trained)
    shapes = {path: p.shape for path, p in model.named_parameters()}
    assert shapes == {path: p.shape for path, p in real.named_parameters()}
    state = torch.random.get_rng_state()
    torch.manual_seed(1)  # as whoever trains it would begin
    twin = type(real)(load_config(folder))
    torch.random.set_rng_state(state)
    for path, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(path)), path
    before = torch.random.get_rng_state()
    fresh_model(load_config(folder), first.architecture, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_untrained_twin_of_another_library_is_refused(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama")
    spec = describe_untrained(folder)
    other = spec.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(ModelError, match="initial weights of seed 3 differ from the plan"):
        load_model(other)
    with pytest.raises(ConfigError, match="untrained"):
        load_model(spec, run=run_options(device_map="auto"))


def describe_untrained(folder: Path) -> ModelSpec:
    store = plan_store(folder.parent / "run.zarr", folder, documents(LENGTHS), ["embed"])
    model = fresh_model(load_config(folder), store.plan.model.architecture, 3)
    update = {"untrained_seed": 3, "weights_sha256": state_sha256(model)}
    return store.plan.model.model_copy(update=update)


def test_one_bit_changes_the_hash_of_a_state(tmp_path: Path) -> None:
    model = build("llama")
    before = state_sha256(model)
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert state_sha256(model) != before


def test_a_device_without_memory_gets_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("llama", tmp_path / "llama")
    store = plan_store(tmp_path / "run.zarr", folder, documents(LENGTHS), ["resid_post.*"])
    extractor = Extractor(store, run_options(tokens_per_batch=64))
    sizes: list[int] = []
    forward = extractor.model.forward

    def small(*args: Any, **given: Any) -> Any:
        sizes.append(given["input_ids"].numel())
        if sizes[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(*args, **given)

    monkeypatch.setattr(extractor.model, "forward", small)
    receipts = [extractor.extract(shard, attempt="test") for shard in range(store.plan.n_shards)]
    assert max(sizes) > 20
    assert extractor.tokens_per_batch < 64
    assert receipts[-1].run["tokens_per_batch"] == extractor.tokens_per_batch
    names = ["resid_post.0", "resid_post.2"]
    truth = expected(store, build("llama"), names)
    assert all(worst(stored(store, name), truth[name]) < 1e-4 for name in names)


def test_a_device_that_has_no_memory_for_one_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("llama", tmp_path / "llama")
    store = plan_store(tmp_path / "run.zarr", folder, documents(LENGTHS), ["resid_post.*"])
    extractor = Extractor(store, run_options(tokens_per_batch=64))

    def never(*_args: Any, **_given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(extractor.model, "forward", never)
    with pytest.raises(MemoryBudgetError, match="memory for 16 tokens of one sequence"):
        extractor.compute(0)
    assert store.missing() == list(range(store.plan.n_shards))
