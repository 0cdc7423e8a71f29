"""Every stored row is what transformers itself gives for that window alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import (
    documents,
    expected,
    oracle,
    plan_store,
    save,
    windows_of,
    worst,
)
from support.stores import Columns

from actlas.pipeline.extract import extract as extract_module
from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.forward.cost import memory
from actlas.pipeline.forward.cost import speed as rate_module
from actlas.pipeline.forward.cost.memory import Projection, batch_bytes, check_memory, shard_bytes
from actlas.pipeline.forward.cost.speed import Rate
from actlas.pipeline.forward.load import load_model
from actlas.pipeline.model import host
from actlas.pipeline.model.describe import load_tokenizer
from actlas.pipeline.model.device import resolve_device, to_numpy
from actlas.pipeline.model.host import n_cpus
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ConfigError, MemoryBudgetError, ModelError, NonFiniteError
from actlas.store.format import layout
from actlas.store.store import Store

pytestmark = pytest.mark.slow

# One token, none, longer than a window, just a window, and across shard borders (64 rows).
LENGTHS = [1, 0, 5, 40, 15, 16, 3, 0, 64, 33, 7, 1, 100, 2, 2, 13, 0]
TOLERANCE = 1e-4  # of the layer's largest magnitude, in float32: the contract's


def run_options(**options: Any) -> RunOptions:
    return RunOptions(**{"device": "cpu", "threads": 1, "tokens_per_batch": 64, **options})


def by_token(store: Store, shards: dict[int, dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Activations of all shards, put back into the order of tokens."""
    plan = store.plan
    found = {h.name: np.full((plan.n_tokens, h.width), np.nan, np.float32) for h in plan.hookpoints}
    for shard, activations in shards.items():
        start, stop = store.shard_range(shard)
        tokens = layout.shard_tokens(plan.order, plan.seed, start, stop)
        for name, rows in activations.items():
            found[name][tokens] = rows.astype(np.float32)
    return found


def computed(store: Store, extractor: Extractor) -> dict[str, NDArray[Any]]:
    shards = range(store.plan.n_shards)
    return by_token(store, {shard: extractor.compute(shard).activations for shard in shards})


def stored(store: Store) -> dict[str, NDArray[Any]]:
    """What a store holds, read back from its files."""
    ranges = {shard: store.shard_range(shard) for shard in range(store.plan.n_shards)}
    return by_token(
        store,
        {
            shard: {name: array[start:stop] for name, array in store.activations.items()}
            for shard, (start, stop) in ranges.items()
        },
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(name, root / name) for name in ("llama", "gpt2", "neox", "bert")}


@pytest.fixture
def llama(folders: dict[str, Path], tmp_path: Path) -> Store:
    return plan_store(tmp_path / "run.zarr", folders["llama"], documents(LENGTHS), ["resid_post.*"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "bert"])
@pytest.mark.parametrize("order", ["shuffled", "corpus"])
def test_every_row_of_every_block(
    folders: dict[str, Path], tmp_path: Path, name: str, order: str
) -> None:
    special = {"prefix_ids": (1,), "suffix_ids": (2,)}
    store = plan_store(
        tmp_path / "run.zarr",
        folders[name],
        documents(LENGTHS),
        ["resid_p*.*"],
        order=order,
        special=special,
    )
    assert store.plan.n_shards == 5
    assert store.plan.model.causal == (name != "bert")
    extractor = Extractor(store, run_options())
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    names = [h.name for h in store.plan.hookpoints]
    found, truth = stored(store), expected(store, extractor.model, names)
    assert {
        n: worst(found[n], truth[n]) for n in names if worst(found[n], truth[n]) > TOLERANCE
    } == {}
    for layer in (1, 2):
        assert np.array_equal(found[f"resid_pre.{layer}"], found[f"resid_post.{layer - 1}"])


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_any_token_budget_gives_the_same(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    store = plan_store(
        tmp_path / "run.zarr", folders[name], documents(LENGTHS), ["resid_post.last"]
    )
    results = [
        computed(store, Extractor(store, run_options(tokens_per_batch=budget)))["resid_post.2"]
        for budget in (1, 17, 100, 8192)
    ]
    for other in results[1:]:
        assert worst(other, results[0]) < TOLERANCE


def test_special_tokens_may_have_rows_of_their_own(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The planner has put them among the kept tokens: nothing is added when they are fed."""
    store = plan_store(
        tmp_path / "run.zarr",
        folders["gpt2"],
        documents([5, 16, 40, 1]),
        ["resid_post.*"],
        keep_special=True,
    )
    assert [len(ids) for _, _, ids in windows_of(store)] == [5, 16, 16, 16, 8, 1]
    extractor = Extractor(store, run_options())
    names = [h.name for h in store.plan.hookpoints]
    found, truth = computed(store, extractor), expected(store, extractor.model, names)
    assert all(worst(found[name], truth[name]) < TOLERANCE for name in names)


def test_real_text_through_a_real_model(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    tokenizer = load_tokenizer(str(folder))
    lines = (shared / "data" / "wikitext2" / "test.txt").read_text().splitlines()
    long = next(line for line in lines if len(line) > 1500)
    texts = [
        "a",
        "",
        "Once upon a time <s> there was </s> a <unk> and <|endoftext|>.",
        "Жили-были 老人 καὶ γραῦς 🦉",
        long * 2,
        *[line for line in lines[:40] if line.strip()][:8],
    ]
    columns = tokenized(tokenizer, texts)
    store = plan_store(
        tmp_path / "run.zarr",
        folder,
        columns,
        ["embed", "resid_p*.*"],
        windows={"max_length": 512, "long": "window"},
        shard_rows=512,
    )
    assert max(columns.start[1:] - columns.start[:-1]) > 512
    assert store.plan.n_shards > 2
    extractor = Extractor(store, run_options(tokens_per_batch=2048))
    receipts = list(extractor.extract_many(range(store.plan.n_shards), attempt="test"))
    assert [receipt.shard for receipt in receipts] == list(range(store.plan.n_shards))
    names = [h.name for h in store.plan.hookpoints if h.name != "embed"]
    found, truth = stored(store), expected(store, extractor.model, names)
    for name in names:
        assert worst(found[name], truth[name]) < TOLERANCE
    assert np.array_equal(found["embed"], found["resid_pre.0"])
    assert np.array_equal(found["resid_pre.3"], found["resid_post.2"])
    assert not any(receipt.n_nonfinite["resid_post.4"] for receipt in receipts)


def tokenized(tokenizer: Any, texts: Sequence[str]) -> Columns:
    tokens = []
    for text in texts:
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        starts = [start for start, _ in encoded["offset_mapping"]]
        tokens.append(list(zip(encoded["input_ids"], starts, strict=True)))
    return Columns(list(texts), tokens)


def test_bfloat16_compute_is_as_close_as_transformers_own_padded_batch(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Twice the difference between transformers' padded batch and its single window."""
    store = plan_store(
        tmp_path / "run.zarr",
        folders["llama"],
        documents(LENGTHS),
        ["resid_post.*"],
        compute_dtype="bfloat16",
        dtype="bfloat16",
    )
    extractor = Extractor(store, run_options())
    model = load_model(store.plan.model)
    assert model.dtype == torch.bfloat16
    names = [h.name for h in store.plan.hookpoints]
    found, truth = computed(store, extractor), expected(store, model, names)
    own = padded_difference(model, [ids for _, _, ids in windows_of(store)])
    for name in names[:-1]:
        assert worst(found[name], truth[name]) <= 2 * max(own, 2**-8)


def padded_difference(model: Any, windows: list[list[int]]) -> float:
    """The largest difference that transformers shows between a padded batch and single windows."""
    longest = max(map(len, windows))
    ids = torch.zeros((len(windows), longest), dtype=torch.long)
    for i, window in enumerate(windows):
        ids[i, : len(window)] = torch.tensor(window)
    mask = torch.tensor([[1] * len(w) + [0] * (longest - len(w)) for w in windows])
    with torch.no_grad():
        hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return max(
        worst(
            hidden[layer + 1][i, : len(window)].float().numpy(),
            oracle(model, window)[f"resid_post.{layer}"],
        )
        for i, window in enumerate(windows)
        for layer in range(2)
    )


def test_rounding_is_to_the_nearest_even(folders: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for dtype in ("float32", "bfloat16", "float16"):
        store = plan_store(
            tmp_path / f"{dtype}.zarr",
            folders["llama"],
            documents([30, 7]),
            ["resid_post.1"],
            dtype=dtype,
        )
        found[dtype] = Extractor(store, run_options()).compute(0).activations["resid_post.1"]
    for dtype, numpy_dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        assert found[dtype].dtype == numpy_dtype
        assert np.array_equal(found[dtype], found["float32"].astype(numpy_dtype))


def test_overflow_in_float16_is_counted_and_may_be_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    store = plan_store(
        tmp_path / "run.zarr", folders["llama"], documents([30]), ["resid_post.0"], dtype="float16"
    )
    refusing = Extractor(store, run_options(on_nonfinite="refuse"))
    with torch.no_grad():
        refusing.model.model.embed_tokens.weight[:, 3] = 1e6
    with pytest.raises(NonFiniteError):
        refusing.extract(0, attempt="first")
    assert store.missing() == [0]
    recording = Extractor(store, run_options())
    recording.model = refusing.model
    assert recording.extract(0, attempt="second").n_nonfinite == {"resid_post.0": 30}
    assert store.missing() == []


def test_the_receipt_says_how_it_was_made(llama: Store) -> None:
    receipt = Extractor(llama, run_options()).extract(1, attempt="mine")
    assert (receipt.shard, receipt.attempt) == (1, "mine")
    run = receipt.run
    assert run["n_tokens_fed"] > 64
    assert 0 <= run["padding_share"] < 0.5
    assert run["tokens_per_batch"] == 64
    assert run["device"].startswith("cpu")
    assert 0 < run["forward_s"] <= run["compute_s"]
    assert run["gather_s"] > 0


def test_writing_overlaps_with_computing_and_holds_two_shards_at_most(
    llama: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = Extractor(llama, run_options())
    commit, compute = extractor._commit, extractor.compute
    started = [threading.Event() for _ in range(llama.plan.n_shards + 1)]
    in_memory, most = 0, 0
    lock = threading.Lock()

    def counting(shard: int) -> Any:
        nonlocal in_memory, most
        with lock:
            in_memory += 1
            most = max(most, in_memory)
        started[shard].set()
        return compute(shard)

    def waiting(store: Store, shard: int, activations: Any, **how: Any) -> Any:
        nonlocal in_memory
        if shard + 1 < store.plan.n_shards:
            assert started[shard + 1].wait(30), "the next shard was not computed meanwhile"
        receipt = commit(store, shard, activations, **how)
        with lock:
            in_memory -= 1
        return receipt

    monkeypatch.setattr(extractor, "compute", counting)
    monkeypatch.setattr(extractor, "_commit", waiting)
    receipts = list(extractor.extract_many(range(llama.plan.n_shards), attempt="test"))
    assert [receipt.shard for receipt in receipts] == list(range(llama.plan.n_shards))
    assert most == 2
    assert llama.missing() == []


def test_an_error_in_writing_is_raised(llama: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_args: Any, **_how: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extract_module, "commit_shard", failing)
    with pytest.raises(OSError, match="No space left"):
        list(Extractor(llama, run_options()).extract_many([0], attempt="test"))
    assert 0 in llama.missing()


def test_other_weights_are_refused_before_anything_runs(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = save("llama", tmp_path / "m", seed=1)
    store = plan_store(tmp_path / "run.zarr", folder, documents([9]), ["resid_post.0"])
    assert Extractor(store, run_options(), model=str(folder)).compute(0).shard == 0
    with pytest.raises(ModelError, match="weights_sha256"):
        Extractor(store, run_options(), model=str(folders["llama"]))


def test_a_model_that_is_not_as_causal_as_planned_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    store = plan_store(tmp_path / "run.zarr", folders["bert"], documents([9]), ["resid_post.*"])
    model = store.plan.model.model_copy(update={"causal": True})
    store.plan = store.plan.model_copy(update={"model": model})
    with pytest.raises(ModelError, match="earlier rows change"):
        Extractor(store, run_options())


def test_a_run_over_its_memory_is_refused_with_both_numbers(llama: Store) -> None:
    with pytest.raises(MemoryBudgetError, match="and may use") as caught:
        Extractor(llama, run_options(max_memory_bytes=1000))
    details = caught.value.details
    assert details["allowed_bytes"] == 1000
    assert details["needed_bytes"] > 2 * shard_bytes(llama.plan)
    assert shard_bytes(llama.plan) == 64 * 3 * 32 * 4
    Extractor(llama, run_options(max_memory_bytes=details["needed_bytes"]))


@pytest.mark.parametrize(
    ("free", "there", "options", "refused"),
    [
        (100, 800, {"workers": 8}, None),  # seven peers live, and hold 700 of it
        (99, 800, {"workers": 8}, r"may use .*\(99 bytes: the free memory"),
        (
            100,
            799,
            {"workers": 8},
            r"\(99 bytes: this machine's memory over 8 .*Fewer workers, a",
        ),
        (100, 799, {"workers": 64, "address": "auto"}, None),  # of machines like this one
        (99, 799, {"workers": 64, "address": "auto"}, "the free memory"),
        (None, None, {"workers": 8}, None),
        (10, 10, {"workers": 8, "max_memory_bytes": 100}, None),
        (900, 900, {"workers": 8, "max_memory_bytes": 99}, "max_memory_bytes"),
    ],
)
def test_a_worker_needs_what_is_free_and_all_of_them_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
    free: int | None,
    there: int | None,
    options: dict[str, Any],
    refused: str | None,
) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: free)
    monkeypatch.setattr(memory, "total_host_bytes", lambda: there)
    needed = Projection(weights=50, shards=30, batch=20)
    if refused is None:
        check_memory(needed, run_options(**options), "cpu")
        return
    with pytest.raises(MemoryBudgetError, match=refused):
        check_memory(needed, run_options(**options), "cpu")


def test_files_that_the_kernel_keeps_in_memory_are_free(tmp_path: Path) -> None:
    read = host._container_bytes
    assert read(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    assert read(tmp_path) == (1000, 990)
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 90\ninactive_file 600\n")
    assert read(tmp_path) == (1000, 300)
    (tmp_path / "memory.max").write_text("max\n")
    assert read(tmp_path) is None
    assert (host.free_host_bytes() or 0) <= (host.total_host_bytes() or 0)


def test_larger_batches_need_more_memory(llama: Store) -> None:
    config = Extractor(llama, run_options()).model.config
    small, large = (batch_bytes(llama.plan, config, n) for n in (1024, 8192))
    assert large == 8 * small


def test_the_bare_forward_pass_goes_as_deep_and_gathers_nothing(llama: Store) -> None:
    extractor = Extractor(llama, run_options())
    depths: list[str] = []
    for layer, block in enumerate(extractor.model.model.layers):
        block.register_forward_hook(lambda *_args, layer=layer: depths.append(str(layer)))
    rate = extractor.bare_forward_rate(2, max_seconds=0.2)
    assert rate.n_tokens > 0
    assert rate.tokens_per_s == rate.n_tokens / rate.seconds
    assert set(depths) == {"0", "1", "2"}


@pytest.mark.parametrize(("pass_s", "n_passes"), [(3.0, 1), (1.1, 2), (0.5, 3), (0.25, 4)])
def test_the_bare_forward_pass_is_measured_long_enough(
    llama: Store, monkeypatch: pytest.MonkeyPatch, pass_s: float, n_passes: int
) -> None:
    extractor = Extractor(llama, run_options(tokens_per_batch=16))
    extractor.device = "cpu:0"  # a device by its number: one batch size is measured
    passes: list[int] = []
    extractor.model.model.layers[0].register_forward_hook(lambda *_args: passes.append(1))
    clock = itertools.count(0.0, pass_s)
    monkeypatch.setattr(rate_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    rate = extractor.bare_forward_rate(0, max_seconds=2.0)
    assert rate.seconds == pytest.approx(n_passes * pass_s)
    assert len(passes) == 1 + n_passes  # the first runs once more before


def test_a_run_is_compared_with_the_best_batch_size(
    llama: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def rate(_model: Any, _read: Any, batches: list[Any], *_: Any) -> Rate:
        sizes.append(max(batch.n_padded for batch in batches))
        return Rate(100, 1.0 + abs(sizes[-1] - 30))  # the middle one is the fastest

    monkeypatch.setattr(extract_module, "bare_forward_rate", rate)
    found = Extractor(llama, run_options(tokens_per_batch=64)).bare_forward_rate(0)
    assert len(sizes) == 3 and sizes[1] < sizes[0] < sizes[2] and sizes[2] <= 128
    assert found == min((Rate(100, 1.0 + abs(n - 30)) for n in sizes), key=lambda r: r.seconds)


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto").split(":")[0] in {"cpu", "cuda", "mps"}
    for name in ("warp", "cuda:99"):
        with pytest.raises(ConfigError, match=f'device="{name}"'):
            resolve_device(name)
    assert n_cpus() >= 1


def test_bfloat16_reaches_numpy_without_a_copy() -> None:
    tensor = torch.tensor([1.0, -2.5, float("nan"), 3e38]).to(torch.bfloat16)
    array = to_numpy(tensor)
    assert array.dtype == ml_dtypes.bfloat16
    tensor[0] = 7
    assert float(array[0]) == 7
