"""Codes by token and by feature against brute force, anndata and scipy."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.features import Relu, best, made_store, true_codes
from support.stores import Columns, create, fill, plan_for

import actlas
from actlas.analysis.features.encode import Encoder, create_features, finish
from actlas.analysis.features.index import index_features
from actlas.analysis.features.index_plan import cut_blocks
from actlas.store.errors import (
    ConflictError,
    CorruptDataError,
    FeatureError,
    NonFiniteError,
    SaeError,
)
from actlas.store.features.codes import round_values
from actlas.store.features.features import Features
from actlas.store.ledger.derived import group_of
from actlas.store.ledger.job_kind import receipts_of
from actlas.store.store import Store
from actlas.store.verify.verify import verify

HOOKPOINT = "resid_post.0"


def encode(store: Store, sae: Relu, name: str = "made") -> Features:
    features = create_features(store, sae, name, "nowhere")  # type: ignore[arg-type]
    encoder = Encoder(store, features, sae)  # type: ignore[arg-type]
    encoder._n_rows = 37  # several batches in a shard
    for shard in range(store.plan.n_shards):
        encoder.extract(shard, attempt="test")
    finish(store, features, "test")
    return store.features(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Features, np.ndarray]:
    store = made_store(tmp_path_factory.mktemp("features") / "run.zarr")
    sae = Relu(24, 60, HOOKPOINT)
    features = encode(store, sae)
    index_features(store, features, attempt="test", block_codes=900, memory_bytes=48 * 2000)
    return actlas.open(store.path), features, true_codes(store, sae, HOOKPOINT)


def test_codes_are_the_codes_of_the_stored_rows(made: Any) -> None:
    store, _, truth = made
    codes = store.features("made").codes(0, store.plan.n_tokens)
    dense = scipy.sparse.csr_array((codes.data, codes.indices, codes.indptr), truth.shape)
    assert (dense.toarray() == truth).all()
    assert (codes.data > 0).all() and 0 < len(codes.data) < truth.size / 2


@pytest.mark.parametrize("span", [(0, 0), (0, 1), (3, 300), (255, 257), (200, 900)])
def test_any_span_of_tokens(made: Any, span: tuple[int, int]) -> None:
    store, _, truth = made
    codes = store.features("made").codes(*span)
    shape = (span[1] - span[0], truth.shape[1])
    dense = scipy.sparse.csr_array((codes.data, codes.indices, codes.indptr), shape).toarray()
    assert (dense == truth[slice(*span)]).all()
    for feature in (0, 5, 59):
        found = store.features("made").activations(feature, *span)
        assert (found == truth[slice(*span), feature]).all()


@pytest.mark.slow
def test_every_feature_against_brute_force(made: Any) -> None:
    store, _, truth = made
    features = store.features("made")
    assert (features.count == (truth > 0).sum(axis=0)).all()
    assert (features.max == truth.max(axis=0)).all()
    assert features.density == pytest.approx((truth > 0).mean(axis=0), abs=0)
    n_ties = 0
    for feature in range(len(features)):
        column = truth[:, feature]
        fired = np.flatnonzero(column)
        n_ties += len(fired) - len(np.unique(column[fired]))
        if len(fired):
            mean = column[fired].astype(np.float64).mean()
            assert features.mean[feature] == pytest.approx(mean, rel=1e-12)
        for k in (1, 3, 20, 10_000):
            top, bottom = features.top(feature, k), features.bottom(feature, k)
            expected = fired[best(column[fired], k, largest=True)] if len(fired) else fired
            assert top.t.tolist() == expected.tolist()
            assert (top.value == column[expected]).all()
            expected = fired[best(column[fired], k, largest=False)] if len(fired) else fired
            assert bottom.t.tolist() == expected.tolist()
            assert (bottom.value == column[expected]).all()
        for q in (0.0, 0.1, 0.5, 0.99, 1.0):
            if len(fired):
                oracle = np.quantile(column[fired], q, method="inverted_cdf")
                assert features.quantile(feature, q) == oracle
    assert n_ties > 1000, "ties are what this is about"
    assert features.count[0] == 0 and features.count[-1] == store.plan.n_tokens


def test_groups_open_with_anndata_and_scipy(made: Any) -> None:
    import anndata

    store, _, truth = made
    root = zarr.open_group(store.path, mode="r")
    groups = root["features/made"]
    for shard, name in enumerate(sorted(groups["tokens"].group_keys())):
        matrix = anndata.io.read_elem(groups["tokens"][name])
        assert isinstance(matrix, scipy.sparse.csr_matrix | scipy.sparse.csr_array)
        assert (matrix.toarray() == truth[slice(*store.shard_range(shard))]).all()
    columns = [
        anndata.io.read_elem(groups["index"][name]).toarray()
        for name in sorted(groups["index"].group_keys())
    ]
    assert len(columns) > 3
    assert (np.concatenate(columns, axis=1) == truth).all()
    first = np.cumsum([0, *(column.shape[1] for column in columns)])[:-1]
    names = [n.rsplit("-", 1)[0] for n in sorted(groups["index"].group_keys())]
    assert names == [f"{feature:08d}" for feature in first]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 999),
    n_documents=st.integers(1, 30),
    shard_rows=st.sampled_from([64, 256, 1024]),
    order=st.sampled_from(["shuffled", "corpus"]),
    compression=st.sampled_from(["none", "fast"]),
    n_features=st.integers(2, 40),
    block_codes=st.integers(1, 3000),
    memory=st.integers(1, 200_000),
)
def test_any_store_any_blocks_any_memory(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    n_documents: int,
    shard_rows: int,
    order: str,
    compression: str,
    n_features: int,
    block_codes: int,
    memory: int,
) -> None:
    path = tmp_path_factory.mktemp("any") / "run.zarr"
    changes = {"shard_rows": shard_rows, "order": order, "compression": compression}
    store = made_store(path, seed, n_documents, **changes)
    sae = Relu(24, n_features, HOOKPOINT, seed)
    features = encode(store, sae)
    made = index_features(
        store, features, attempt="test", block_codes=block_codes, memory_bytes=memory
    )
    truth = true_codes(store, sae, HOOKPOINT)
    assert made.n_codes == (truth > 0).sum()
    for feature in {0, n_features // 2, n_features - 1}:
        column = truth[:, feature]
        fired = np.flatnonzero(column)
        expected = fired[best(column[fired], 7, largest=True)] if len(fired) else fired
        assert features.top(feature, 7).t.tolist() == expected.tolist()
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed


def test_rounding_is_bfloat16s() -> None:
    import ml_dtypes

    values = np.abs(np.random.default_rng(0).standard_normal(10_000).astype(np.float32)) ** 9
    assert (round_values(values) == values.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60),
    st.integers(1, 80),
    st.integers(1, 80),
    st.sets(st.integers(0, 59)),
)
def test_blocks_are_whole_and_bounded_and_old_ones_keep_their_borders(
    counts: list[int], before: int, now: int, kept: set[int]
) -> None:
    old = cut_blocks(np.array(counts), before).tolist()
    done = {a: b for i, (a, b) in enumerate(itertools.pairwise(old)) if i in kept}
    edges = cut_blocks(np.array(counts), now, done).tolist()
    assert edges[0] == 0 and edges[-1] == len(counts) and (np.diff(edges) > 0).all()
    blocks = list(itertools.pairwise(edges))
    assert set(done.items()) <= set(blocks)
    for a, b in blocks:
        assert sum(counts[a:b]) <= now or b - a == 1 or a in done


def test_two_attempts_leave_one_and_a_killed_ones_group_is_swept(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    sae = Relu(24, 16, HOOKPOINT)
    features = create_features(store, sae, "made", "nowhere")  # type: ignore[arg-type]
    encoder = Encoder(store, features, sae)  # type: ignore[arg-type]
    first = encoder.extract(0, attempt="first")
    killed = Path(store.path) / "features/made/tokens/00000000-0123456789ab"
    for name in ("zarr.json", "indptr/zarr.json", "indptr/c/0", "indices/zarr.json"):
        (killed / name).parent.mkdir(parents=True, exist_ok=True)
        (killed / name).write_text("{}")
    assert encoder.extract(0, attempt="second") == first
    assert "features/made/tokens/00000000-0123456789ab/zarr.json" in verify(store).unclaimed
    with pytest.raises(FeatureError, match="not encoded yet"):
        store.features("made").codes(0, 1)
    with pytest.raises(FileNotFoundError):
        finish(store, features, "too soon")
    for shard in range(store.plan.n_shards):
        encoder.extract(shard, attempt="third")
    finish(store, features, "test")
    assert not killed.exists()
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed


@pytest.mark.slow
@pytest.mark.parametrize("other_blocks", [None, 37, 1 << 24])
def test_an_index_that_was_stopped_keeps_its_blocks(
    tmp_path: Path, other_blocks: int | None
) -> None:
    store = made_store(tmp_path / "run.zarr")
    sae = Relu(24, 40, HOOKPOINT)
    features = encode(store, sae)
    calls = 0

    def stop(what: str, done: int, of: int) -> None:
        nonlocal calls
        calls += 1
        if what.startswith("pass 3"):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"block_codes": 500, "memory_bytes": 48 * 600}
    with pytest.raises(KeyboardInterrupt):
        index_features(store, features, attempt="one", progress=stop, **options)
    with pytest.raises(FeatureError, match=r"actlas\.index_sae"):
        store.features("made").top(0)
    kept = receipts_of(store, "index.made", 10**6)
    before = {unit: kept.read(unit) for unit in kept.done()}
    assert before
    options["block_codes"] = other_blocks or 500
    made = index_features(store, features, attempt="two", **options)
    assert {unit: kept.read(unit) for unit in before} == before
    assert other_blocks or made.n_passes < made.n_blocks
    truth = true_codes(store, sae, HOOKPOINT)
    assert (store.features("made").count == (truth > 0).sum(axis=0)).all()
    for feature in range(40):
        fired = np.flatnonzero(truth[:, feature])
        expected = fired[best(truth[fired, feature], 5, largest=True)] if len(fired) else fired
        assert store.features("made").top(feature, 5).t.tolist() == expected.tolist()


def test_a_flipped_byte_is_named_and_never_returned(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    sae = Relu(24, 16, HOOKPOINT)
    features = encode(store, sae)
    index_features(store, features, attempt="test")
    receipt = receipts_of(store, "encode.made", store.plan.n_shards).read(1)
    path = Path(store.path) / group_of(receipt) / "data/c/0"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptDataError):
        actlas.open(store.path).features("made").codes(*store.shard_range(1))
    [damage] = verify(store, full=True).damages
    assert damage.key.endswith("data/c/0") and (damage.start, damage.stop) == store.shard_range(1)
    assert verify(store).ok
    path.write_bytes(data[:-1])
    [damage] = verify(store).damages
    assert "truncated" in damage.what


def test_metadata_of_codes_is_read_by_the_fast_verify_too(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    encode(store, Relu(24, 16, HOOKPOINT))
    [path] = Path(store.path).glob("features/made/tokens/00000001-*/data/zarr.json")
    path.write_bytes(path.read_bytes().replace(b'"shape"', b'"shade"'))
    [damage] = verify(store).damages
    assert damage.key == path.relative_to(store.path).as_posix()
    assert (damage.start, damage.stop) == store.shard_range(1)


def test_derived_data_names_what_it_was_made_from(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    features = encode(store, Relu(24, 16, HOOKPOINT))
    receipt = Path(store.path) / "ledger/receipts/extract/00000002.json"
    line = json.loads(receipt.read_text())
    body = json.dumps(line["record"] | {"attempt": "another"}, separators=(",", ":")).encode()
    import hashlib

    digest = hashlib.sha256(body).hexdigest().encode()
    receipt.write_bytes(b'{"record":' + body + b',"sha256":"' + digest + b'"}\n')
    damages = verify(store).damages
    assert [d.key for d in damages] == ["ledger/receipts/encode.made/00000002.json"]
    assert "was made from another" in damages[0].what
    assert features.encoded


def test_what_does_not_fit_is_refused(tmp_path: Path, made: Any) -> None:
    store, features, _ = made
    for sae, field in (
        (Relu(25, 8, HOOKPOINT), "d_in"),
        (Relu(24, 8, "resid_post.7"), "hookpoint"),
        (Relu(24, 8, None), "hookpoint"),
        (Relu(24, 60, HOOKPOINT, seed=1), "sae_sha256"),
        (Relu(24, 60, HOOKPOINT), "name"),
    ):
        name = "made" if field != "name" else "../made it"
        with pytest.raises(SaeError) as error:
            create_features(store, sae, name, "x")  # type: ignore[arg-type]
        assert error.value.details["field"] == field
    with pytest.raises(FeatureError, match="features 0 to 59"):
        features.top(60)
    with pytest.raises(FeatureError, match="features 0 to 59"):
        features.contexts(-1)
    with pytest.raises(FeatureError, match="it has made"):
        store.features("other")
    with pytest.raises(FeatureError, match="it has made"):
        store.features("../../etc")
    with pytest.raises(IndexError, match="tokens"):
        features.codes(-1, 3)


def test_a_blocks_input_is_the_output_of_the_one_before(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    for number, (trained, asked) in enumerate(
        [("resid_pre.1", None), ("resid_pre.1", HOOKPOINT), (None, HOOKPOINT)]
    ):
        sae = Relu(24, 16, trained)
        features = create_features(store, sae, f"set{number}", "x", asked)  # type: ignore[arg-type]
        assert features.hookpoint == HOOKPOINT
    with pytest.raises(SaeError, match=r'trained on resid_pre\.1, got hookpoint="mlp\.1"'):
        create_features(store, Relu(24, 16, "resid_pre.1"), "x", "x", "mlp.1")  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000])
def test_codes_that_are_not_finite_are_refused(tmp_path: Path, bits: int) -> None:
    store = made_store(tmp_path / "run.zarr")
    sae = Relu(24, 16, HOOKPOINT)
    bad = np.array([bits], np.uint32).view(np.float32)[0]
    assert not np.isfinite(round_values(np.array([bad, 1], np.float32))[0])
    features = create_features(store, sae, "made", "nowhere")  # type: ignore[arg-type]
    sae.codes = lambda x: np.where(  # type: ignore[method-assign]
        np.arange(len(x))[:, None] == 5, bad, np.ones((len(x), 16), np.float32)
    )
    with pytest.raises(NonFiniteError, match="row 5 "):
        Encoder(store, features, sae).extract(0, attempt="test")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_as_many_features_as_sixteen_bits_hold_and_one_more(
    tmp_path: Path, n_features: int, dtype: str
) -> None:
    store = made_store(tmp_path / "run.zarr", n_documents=8)
    sae = Relu(24, n_features, HOOKPOINT)
    features = encode(store, sae)
    made = index_features(store, features, attempt="test", block_codes=100_000)
    truth = true_codes(store, sae, HOOKPOINT)
    assert features.codes(0, 5).indices.dtype == dtype
    assert (features.count == (truth > 0).sum(axis=0)).all() and made.n_blocks > 2
    for feature in (1, 255, 256, 32_768, n_features - 2, n_features - 1):
        fired = np.flatnonzero(truth[:, feature])
        expected = fired[best(truth[fired, feature], 5, largest=True)] if len(fired) else fired
        assert features.top(feature, 5).t.tolist() == expected.tolist()


def test_many_workers_at_the_same_shards_leave_one_of_each(tmp_path: Path) -> None:
    """As a worker that was given up and wakes: all write, one receipt counts."""
    store = made_store(tmp_path / "run.zarr")
    sae = Relu(24, 40, HOOKPOINT)
    features = create_features(store, sae, "made", "nowhere")  # type: ignore[arg-type]
    start = threading.Barrier(4)

    def work(number: int) -> list[str]:
        own = Encoder(actlas.open(store.path), features, sae)  # type: ignore[arg-type]
        start.wait()
        shards = range(store.plan.n_shards)
        return [own.extract(shard, attempt=f"w{number}").attempt for shard in shards]

    with ThreadPoolExecutor(4) as pool:
        stood = list(pool.map(work, range(4)))
    assert all(attempts == stood[0] for attempts in stood), "all were told the same"
    finish(store, features, "test")
    codes = store.features("made").codes(0, store.plan.n_tokens)
    shape = (store.plan.n_tokens, 40)
    dense = scipy.sparse.csr_array((codes.data, codes.indices, codes.indptr), shape).toarray()
    assert (dense == true_codes(store, sae, HOOKPOINT)).all()
    report = verify(store, full=True)
    assert report.ok and not report.unclaimed


def test_what_was_made_from_other_codes_is_refused(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    features = encode(store, Relu(24, 40, HOOKPOINT))

    def stop(what: str, done: int, of: int) -> None:
        if what.startswith("pass 3"):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"block_codes": 500, "memory_bytes": 1}
    with pytest.raises(KeyboardInterrupt):
        index_features(store, features, attempt="one", progress=stop, **options)
    ledger = Path(store.path) / "ledger/receipts"
    (ledger / "encode.made/00000002.json").unlink()
    (ledger / "encoded.made/00000000.json").unlink()
    again = actlas.open(store.path)
    other = encode(again, Relu(24, 40, HOOKPOINT))
    with pytest.raises(ConflictError, match=r"made from another ledger/receipts/encoded\.made"):
        index_features(again, other, attempt="two", **options)
    assert not again.features("made").indexed


def test_an_orphan_in_a_standing_group_is_one(tmp_path: Path) -> None:
    store = made_store(tmp_path / "run.zarr")
    encode(store, Relu(24, 16, HOOKPOINT))
    receipt = receipts_of(store, "encode.made", store.plan.n_shards).read(1)
    (Path(store.path) / group_of(receipt) / "data/c/1").write_bytes(b"junk")
    report = verify(store)
    assert not report.unclaimed
    assert ["orphan" in damage.what for damage in report.damages] == [True]


def test_tokens_that_begin_with_their_space_keep_their_own_shade(tmp_path: Path) -> None:
    texts = [f"one two three four five six d{i}" for i in range(40)]
    tokens = [[(7, at) for at in (0, 3, 7, 13, 18, 23, 27)] for _ in texts]
    columns = Columns(texts, tokens)  # "one", " two", " three", ...
    store = create(tmp_path / "run.zarr", plan_for(columns), columns)
    fill(store)
    features = encode(store, Relu(24, 16, HOOKPOINT))
    index_features(store, features, attempt="test")
    n_cut = 0
    for feature in range(1, 16):
        for c in store.features("made").contexts(feature, k=20, words=2):
            whole = store.document(c.doc_idx).tokens
            first = c.pos_idx - c.peak
            for i, piece in enumerate(c.tokens):
                assert piece and piece in whole[first + i]
            n_cut += c.tokens[0] != whole[first]
    assert n_cut > 20, "contexts that begin inside a token are what this is about"


def test_text_without_white_space_is_cut(tmp_path: Path) -> None:
    columns = Columns(["字" * 5000], [[(7, i) for i in range(5000)]])
    store = create(tmp_path / "run.zarr", plan_for(columns), columns)
    context = store.context(0, 2500, words=20)
    assert len(context.before) == len(context.after) == 64 * 21
    assert context.token == "字"
    short = store.context(0, 10, words=0)
    assert (len(short.before), len(short.after)) == (10, 64)


def test_contexts_are_slices_of_their_documents_shaded_by_the_codes(made: Any) -> None:
    store, _, truth = made
    features = store.features("made")
    feature = int(np.argmax((features.count > 30) & (features.count < 400)))
    for words in (0, 3, 20):
        contexts = features.contexts(feature, k=12, words=words)
        assert [c.t for c in contexts] == features.top(feature, 12).t.tolist()
        for c in contexts:
            text = store.documents.text(c.doc_idx)
            assert str(c) == f"{c.before}[{c.token}]{c.after}"
            assert c.before + c.token + c.after == "".join(c.tokens)
            assert c.before + c.token + c.after in text
            assert c.activations[c.peak] == c.value == truth[c.t, feature]
            assert c.tokens[c.peak].strip() == c.token.strip()
            first = c.t - c.peak
            shades = truth[first : first + len(c.activations), feature]
            assert list(c.activations) == shades.tolist()
            assert len(c.before.split()) <= words and len(c.after.split()) <= words
    html = contexts.to_html() + contexts._repr_html_() + contexts[0]._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html
    json.dumps(contexts.to_json(), allow_nan=False)
    one_each = features.contexts(feature, k=6, distinct=True)
    assert len({c.doc_idx for c in one_each}) == len(one_each) == 6
    seen: dict[int, int] = {}
    for t in features.top(feature, 10_000).t.tolist():
        seen.setdefault(int(store.documents.find(t)), t)
    assert [c.t for c in one_each] == list(seen.values())[:6]
    assert len(features.contexts(0)) == 0 and "no token" in features.contexts(0)._repr_html_()
