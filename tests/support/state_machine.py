"""The life of a small store, step by step: planned, extracted, pooled, encoded, indexed.

Every step is a plain function of (path, attempt) that goes on where an earlier attempt died, so
that it can run in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.options import RunOptions
from actlas.store.format import layout
from actlas.store.format.schema import Receipt
from actlas.store.ledger import lease
from actlas.store.ledger.finished import note_finished
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.store import Store, open_store
from actlas.store.verify.repair_shard import repair_pooled, repair_shard
from actlas.store.write.commit import commit_pooled, commit_shard
from support.stores import Columns, create, plan_for, truth, words_columns

HOOKPOINT = "resid_post.0"
FEATURES = "made"
N_FEATURES = 12
BLOCK_CODES = 150
"""Of the index: small, for several blocks."""

Step = Callable[[str, str], object]
"""Does one thing to the store at a path, as one attempt."""


def documents() -> Columns:
    """Nine documents, one of them empty, with labels and a column of tokens."""
    n = 9
    columns = words_columns(
        0,
        n,
        8,
        label=np.arange(n, dtype=np.int32) % 2,
        label_names=("S", "N"),
        token_column_names={"role": ("user", "assistant")},
    )
    columns.codes = {"role": np.arange(columns.n_tokens, dtype=np.int32) % 3 - 1}
    return columns


def plan_store(path: str, attempt: str, **changes: Any) -> Store:
    """Plan the store."""
    columns = documents()
    hookpoint = {"name": HOOKPOINT, "module": "layers.0", "side": "output", "width": 8}
    fields: dict[str, Any] = {
        "shard_rows": 32,
        "hookpoints": (hookpoint,),
        "dtype": "float32",
        "pools": ("mean",),
        "keep_special": True,
        "with_loss": True,
        "request": {"model": "made-up", "corpus": "made-up"},
    }
    return create(path, plan_for(columns, **fields | changes), columns)


def shard_rows(
    store: Store, shard: int, noise: int = 0
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """Return a shard's made-up activations and losses; ``noise`` rounds them in its own way."""
    start, stop = store.shard_range(shard)
    t = layout.shard_tokens(store.plan.order, store.plan.seed, start, stop)
    by_hookpoint = {}
    for name in store.arrays.activations:
        rows = truth(store, name)[t]
        by_hookpoint[name] = rounded_by_another(rows, noise) if noise else rows
    loss = np.random.default_rng(5).random(store.plan.n_tokens).astype(np.float32)[t]
    return by_hookpoint, rounded_by_another(loss, noise) if noise else loss


def rounded_by_another(rows: NDArray[Any], noise: int) -> NDArray[Any]:
    """Return the rows as another kernel would give them: some differ in their last bit."""
    words = rows.copy().view(f"u{rows.dtype.itemsize}")
    words ^= np.random.default_rng(noise).integers(0, 2, words.shape).astype(words.dtype)
    return words.view(rows.dtype)


def commit_one(path: str, attempt: str, shard: int = 0, noise: int = 0) -> None:
    """Commit one shard: its arrays, its statistics, its receipt."""
    store = open_store(path)
    rows, loss = shard_rows(store, shard, noise)
    losses = loss if store.plan.with_loss else None
    commit_shard(store, shard, rows, attempt=attempt, loss=losses)


def commit_all(path: str, attempt: str) -> None:
    """Commit every shard, and record that this is finished, as a driver does."""
    store = open_store(path)
    for shard in store.missing():
        commit_one(path, attempt, shard)
    note_finished(store.objects, store.plan_sha256, EXTRACT, store.n_shards())


def pooled_rows(store: Store, shard: int, noise: int = 0) -> dict[Any, NDArray[np.float32]]:
    """Return a shard of made-up pooled rows."""
    start, stop = store.covered(shard, POOLED)
    empty = np.diff(store.documents.starts(start, stop)) == 0
    found = {}
    for (name, pool), spec in store.arrays.pooled.items():
        rng = np.random.default_rng([7, shard])
        rows = rng.standard_normal((stop - start, spec.shape[1])).astype(np.float32)
        rows = rounded_by_another(rows, noise) if noise else rows
        rows[empty] = np.nan
        found[name, pool] = rows
    return found


def pool_one(path: str, attempt: str, shard: int = 0) -> None:
    """Commit one shard of pooled rows."""
    store = open_store(path)
    commit_pooled(store, shard, pooled_rows(store, shard), attempt=attempt)


def pool_all(path: str, attempt: str) -> None:
    """Commit every shard of pooled rows, and record that this is finished."""
    store = open_store(path)
    for shard in store.missing(POOLED):
        pool_one(path, attempt, shard)
    note_finished(store.objects, store.plan_sha256, POOLED, store.n_shards(POOLED))


def save_dictionary(path: Path) -> None:
    """Save a sparse autoencoder beside the store, by which its features can be made again."""
    import torch

    from actlas.analysis.sae.model import SparseAutoencoder
    from actlas.analysis.sae.saelens_format import save_sae

    sae = SparseAutoencoder(8, N_FEATURES, kind="relu", hookpoint=HOOKPOINT)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randint(-2, 3, sae.W_enc.shape, generator=generator).float())
    save_sae(sae, path.parent / FEATURES, {})


def encode_one(path: str, attempt: str, shard: int = 0) -> None:
    """Begin a set of features, and encode one shard: by what is saved, or else by a stand-in."""
    from actlas.analysis.features.encode import Encoder, create_features
    from actlas.analysis.sae.saelens_format import load_sae
    from support.features import Relu

    store = open_store(path)
    folder = Path(path).parent / FEATURES
    sae: Any = load_sae(folder) if folder.exists() else Relu(8, N_FEATURES, HOOKPOINT)
    features = create_features(store, sae, FEATURES, str(folder))
    Encoder(store, features, sae).extract(shard, attempt=attempt)


def encode_all(path: str, attempt: str) -> None:
    """Encode the other shards."""
    for shard in open_store(path).missing(f"encode.{FEATURES}"):
        encode_one(path, attempt, shard)


def finish_codes(path: str, attempt: str) -> None:
    """Write the table of a set of features whose shards are all encoded."""
    from actlas.analysis.features.encode import finish

    store = open_store(path)
    finish(store, store.features(FEATURES), attempt)


def index_codes(path: str, attempt: str) -> None:
    """Write the index by feature, in a few blocks."""
    from actlas.analysis.features.index import index_features

    store = open_store(path)
    index_features(store, store.features(FEATURES), attempt=attempt, block_codes=BLOCK_CODES)


def gather(path: str, attempt: str) -> None:
    """Gather the extremes of every unit."""
    from actlas.analysis.features.extremes import gather_extremes

    gather_extremes(open_store(path), HOOKPOINT, attempt=attempt, k=4)


def hold_lease(path: str, attempt: str) -> None:
    """Take the lease, beat and give it back."""
    objects = open_store(path).objects
    with lease.hold(objects, heartbeat_s=60) as held:
        objects.replace(f"ledger/lease/{held.number:08d}.beat", b"1")


def quarantine(path: str, attempt: str) -> None:
    """Put a shard in quarantine."""
    from actlas.jobs.scheduler.faults import Fault, FaultBudget

    run = RunOptions.model_validate({"max_task_faults": 1})
    ledger = FaultBudget(open_store(path).objects, "extract", run)
    assert ledger.charge(Fault(0, "task", "poison", "traceback", "worker"))


LIFE: dict[str, tuple[Step, Sequence[Step]]] = {
    "plan": (plan_store, ()),
    "commit a shard": (commit_one, ()),
    "commit pooled rows": (pool_one, (commit_all,)),
    "encode a shard": (encode_one, (pool_all,)),
    "finish the codes": (finish_codes, (encode_all,)),
    "index the codes": (index_codes, ()),
    "gather extremes": (gather, ()),
    "lease": (hold_lease, ()),
    "quarantine": (quarantine, ()),
}
"""Each step, and what is done between it and the one before."""


def live_until(name: str, path: str) -> None:
    """Do all that comes before a step."""
    previous: list[Step] = []
    for step, (this, between) in LIFE.items():
        previous += between
        if step == name:
            break
        previous.append(this)
    for do in previous:
        do(path, "before")


def live(path: Path, **changes: Any) -> Store:
    """Return a store with everything in it, of a plan with some changes."""
    plan_store(str(path), "first", **changes)
    for step, between in list(LIFE.values())[1:-2]:
        for do in (*between, step):
            do(str(path), "first")
    return open_store(path)


class Mender:
    """Computes shards again, with bits of its own, and notes which."""

    def __init__(self, path: str, noise: int, attempted: list[tuple[str, int]], job: str) -> None:
        self.store, self.noise = open_store(path), noise
        self.attempted, self.job = attempted, job

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Repair a shard."""
        self.attempted.append((self.job, shard))
        if self.job == POOLED:
            rows = pooled_rows(self.store, shard, self.noise)
            return repair_pooled(self.store, shard, rows, attempt=attempt)
        dense, loss = shard_rows(self.store, shard, self.noise)
        return repair_shard(self.store, shard, dense, attempt=attempt, loss=loss)

    def bare_forward_rate(self, shard: int = 0) -> None:
        """Return None: there is no model."""

    def close(self) -> None:
        """Do nothing."""


def mend(path: str, noise: int = 0) -> tuple[Any, list[tuple[str, int]]]:
    """Repair a store; return what it came to, and the shards that were computed again.

    Its documents come from :func:`documents` once more: see :func:`planned_again`.
    """
    from actlas.jobs.run.repair import repair_at

    attempted: list[tuple[str, int]] = []

    def opener(job: str) -> Any:
        return lambda store, run: Mender(store, noise, attempted, job)

    made = repair_at(
        path,
        RunOptions.model_validate({"executor": "inline"}),
        remove_orphans=True,
        make_repairer=opener(EXTRACT),
        make_pooled_repairer=opener(POOLED),
    )
    return made, attempted


def planned_again(patch: Any, path: Path) -> None:
    """Let a repair plan once more from the made-up documents, as it does from a corpus."""
    plan = open_store(path).plan
    changes = {"compression": plan.compression, "dtype": plan.dtype}

    def make_plan(again: Path, options: Any) -> Store:
        return plan_store(str(again), "again", **changes)

    patch.setattr("actlas.pipeline.plan.make.make_plan", make_plan)


def go_on(path: str) -> None:
    """Do all that is missing: what a user does after a repair."""
    commit_all(path, "after")
    pool_all(path, "after")
    encode_one(path, "after")
    encode_all(path, "after")
    finish_codes(path, "after")
    index_codes(path, "after")
    gather(path, "after")
