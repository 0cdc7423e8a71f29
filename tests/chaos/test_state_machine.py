"""A store's life in any order: planned, written, died upon, damaged, repaired, read, encoded.

Attempts differ in their last bits, as real kernels do, so that who wrote what is seen in the bytes.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import state_machine as machine
from support.crash import SystemCalls, dies, overwrite, ram_folder, refused
from support.damage import flipped, kind_of
from support.oracle import broken_promises, files, unmarked

from actlas.store.errors import (
    CorruptDataError,
    FormatError,
    NotExtractedError,
    RunFaultError,
    StoreNotFoundError,
)
from actlas.store.ledger import lease
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify

pytestmark = pytest.mark.chaos

SHARDS = st.integers(0, 2)
NOISE = st.integers(0, 3)
CALLS = st.integers(0, 130)
OFTEN = st.integers(0, 10**6)
DAMAGE = st.sampled_from(["flip", "truncate", "empty", "remove", "stray"])
PROFILES = st.sampled_from(["none", "fast", "dense"])
NO_DAMAGE = ("ledger/receipts/", "ledger/repairs/", "ledger/features/")
"""Where these are gone, something is not done: that is no damage."""
PLANS = {"ledger/plan.json", "ledger/plan.copy.json"}
FEATURE = 3


class StoreLife(RuleBasedStateMachine):
    """What is done to a store, and what must hold after each step.

    Attributes
    ----------
    sound : dict of str to bytes or None
        What lay under the keys that were damaged since; None where a stray was put.
    seen : dict of str to bytes
        Every file that a receipt or the plan has named, as it was when it was first seen.
    noises : set of int
        The kernels that had a hand in this store.
    mending : bool
        Whether a repair died: what was damaged may be whole by now, or not.
    """

    ram: Path
    tally: dict[str, int]
    patch: Any

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.ram))
        shutil.copytree(self.ram / machine.FEATURES, self.folder / machine.FEATURES)
        self.path = self.folder / "run.zarr"
        self.sound: dict[str, bytes | None] = {}
        self.seen: dict[str, bytes] = {}
        self.noises = {0}
        self.mending = False
        self.n_attempts = 0
        self.handle: Store | None = None

    # What is there

    @property
    def planned(self) -> bool:
        return self.path.exists()

    @property
    def well(self) -> bool:
        return self.planned and not self.sound and not self.mending

    @property
    def openable(self) -> bool:
        return self.planned and not {"zarr.json", "ledger/plan.json"} & set(self.sound)

    def attempt(self) -> str:
        self.n_attempts += 1
        return f"attempt {self.n_attempts}"

    def count(self, what: str) -> None:
        self.tally[what] = self.tally.get(what, 0) + 1

    def try_dying(self, step: Callable[[], object], at: int | None) -> None:
        """Do a step, and die at one of its calls; sweep as the next driver would."""
        if at is None:
            step()
        elif dies(step, self.folder, at):
            self.count("deaths")
        if self.openable:
            open_store(self.path).objects.sweep()

    # Planning and writing

    @precondition(lambda self: not self.planned)
    @rule(
        at=st.none() | st.integers(0, 400), compression=st.sampled_from(["none", "fast", "dense"])
    )
    def plan(self, at: int | None, compression: str) -> None:
        attempt = self.attempt()

        def step() -> None:
            machine.plan_store(str(self.path), attempt, compression=compression)

        self.try_dying(step, at)
        assert at is not None or self.planned
        if self.planned:
            machine.planned_again(self.patch, self.path)

    @precondition(lambda self: self.well)
    @rule(shard=SHARDS, noise=NOISE, at=st.none() | CALLS)
    def write(self, shard: int, noise: int, at: int | None) -> None:
        """Commit a shard: also one that is there already, by an attempt that slept."""
        self.noises.add(noise)
        attempt = self.attempt()
        self.try_dying(lambda: machine.commit_one(str(self.path), attempt, shard, noise), at)
        if at is None:
            assert shard in open_store(self.path).done()
        self.count("commits")

    @precondition(lambda self: self.well)
    @rule(at=st.none() | st.integers(0, 25))
    def pool(self, at: int | None) -> None:
        attempt = self.attempt()
        self.try_dying(lambda: machine.pool_all(str(self.path), attempt), at)

    @precondition(lambda self: self.well)
    @rule(
        shard=SHARDS,
        noise=NOISE,
        at=CALLS,
        code=st.sampled_from([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]),
    )
    def write_on_a_failing_disk(self, shard: int, noise: int, at: int, code: int) -> None:
        self.noises.add(noise)
        try:
            with SystemCalls(self.folder, refused(at, code)):
                machine.commit_one(str(self.path), self.attempt(), shard, noise)
        except RunFaultError as error:
            assert error.details["errno"] == code
            self.count("refusals")
        open_store(self.path).objects.sweep()

    @precondition(lambda self: self.well)
    @rule(noise=NOISE)
    def resume(self, noise: int) -> None:
        self.noises.add(noise)
        store = open_store(self.path)
        with lease.hold(store.objects, heartbeat_s=60):
            for shard in store.missing():
                machine.commit_one(str(self.path), self.attempt(), shard, noise)
        assert not open_store(self.path).missing()

    @precondition(lambda self: self.well and bool(open_store(self.path).done()))
    @rule(at=st.none() | st.integers(0, 250), indexed=st.booleans())
    def derive(self, at: int | None, indexed: bool) -> None:
        """Encode what is extracted; finish and index where all is."""
        attempt = self.attempt()

        def step() -> None:
            store, path = open_store(self.path), str(self.path)
            for shard in sorted(store.done() - store.done(f"encode.{machine.FEATURES}")):
                machine.encode_one(path, attempt, shard)
            if not store.missing() and not store.missing(f"encode.{machine.FEATURES}"):
                machine.finish_codes(path, attempt)
                if indexed:
                    machine.index_codes(path, attempt)

        self.try_dying(step, at)
        self.count("encodings")

    # Damage

    @precondition(lambda self: self.planned and not self.mending and len(self.sound) < 3)
    @rule(what=DAMAGE, which=OFTEN, where=OFTEN)
    def damage(self, what: str, which: int, where: int) -> None:
        """Harm a file that a record stands for, or put one that none does."""
        if what == "stray":
            key = f"rows/stray-{which}"
            if key not in self.sound:
                (self.path / key).write_bytes(b"?")
                self.sound[key] = None
            return
        described = {key for key in self.seen if key.startswith("ledger/features/")}
        keys = sorted(set(self.seen) - set(self.sound) - described, key=unmarked)
        key = keys[which % len(keys)]
        data = self.seen[key]
        if what == "remove" and key.startswith(
            ("ledger/receipts", "ledger/features", "ledger/rep")
        ):
            return  # a shard without a receipt is not done, which is no damage
        if key in PLANS and PLANS & set(self.sound):
            return  # from neither there is no way back, and a repair says so
        self.sound[key] = data
        if what == "remove":
            (self.path / key).unlink()
        else:
            bad = {"truncate": data[: which % len(data)], "empty": b""}.get(what)
            overwrite(
                self.path / key, flipped(data, random.Random(where))[0] if bad is None else bad
            )
        self.count("damages")

    @precondition(lambda self: bool(self.sound) or self.mending)
    @rule(noise=NOISE, at=st.none() | st.integers(0, 60))
    def repair(self, noise: int, at: int | None) -> None:
        """Repair what is damaged, by a kernel of its own; or die in the middle of that."""
        self.noises.add(noise)
        made: dict[str, Any] = {}
        before = files(self.path)

        def step() -> None:
            made["repaired"], _ = machine.mend(str(self.path), noise)

        self.try_dying(step, at)
        if "repaired" not in made:
            self.mending = True
            self.count("deaths in a repair")
            return
        assert made["repaired"].exit_code == 0, made["repaired"]
        assert not verify(open_store(self.path), full=True).damages
        self._check_what_was_repaired(before)
        self.sound, self.mending, self.handle = {}, False, None
        self.count("repairs")

    def _check_what_was_repaired(self, before: dict[str, bytes]) -> None:
        """What was whole stays to the last bit; what was not is of one of the kernels."""
        after = files(self.path)
        for key, data in self.seen.items():
            kept = key not in self.sound and kind_of(key) in ("rows", "activations", "pooled rows")
            if kept and not self.mending and not self._unproved_without_receipt(key):
                assert after[key] == data == before[key], f"{key} was whole, and was written over"
        self.seen = {}

    def _unproved_without_receipt(self, key: str) -> bool:
        """Whether only its shard's receipt could say that an array is whole, and is damaged."""
        job = "pooled" if key.startswith("pooled/") else "extract"
        number = int(re.sub(r".*/c/(\d+).*", r"\1", key))
        receipts = (f"ledger/receipts/{job}/{number:08d}.", f"ledger/repairs/{job}/{number:08d}.")
        no_checksums = open_store(self.path).plan.compression == "none"
        return no_checksums and any(damaged.startswith(receipts) for damaged in self.sound)

    # Reading

    @precondition(lambda self: self.planned)
    @rule(full=st.booleans())
    def verify(self, full: bool) -> None:
        """Damage is found where it is, and nowhere else."""
        self.count("verifications")
        try:
            report = verify(open_store(self.path), full=full)
        except (CorruptDataError, FormatError, StoreNotFoundError):
            assert self.mending or not self.openable
            return
        if self.mending:
            return
        keys = {damage.key for damage in report.damages}
        if not self.sound:
            assert not keys, report.damages
            return
        for key, data in self.sound.items():
            there = self.path / key
            cut = data is None or not there.exists() or there.stat().st_size != len(data)
            if full or cut or key.startswith("ledger/") or key.endswith("zarr.json"):
                assert key in keys or self._unproved(key, keys), (key, report.damages)
        if not any(key.startswith(("ledger/", "documents/")) for key in self.sound):
            receipts = {key for key in keys if key.startswith("ledger/receipts/")}
            assert keys - receipts <= set(self.sound), report.damages

    def _unproved(self, key: str, named: set[str]) -> bool:
        """Whether the record that stands for a key is damaged too, and named in its place."""
        records = [self.sound[k] for k in named if k.startswith(NO_DAMAGE) and self.sound.get(k)]
        return any(key in named_by(record) for record in records if record is not None)

    @precondition(lambda self: self.openable and not self.mending)
    @rule(first=st.integers(0, 70), n=st.integers(1, 40), fresh=st.booleans())
    def read(self, first: int, n: int, fresh: bool) -> None:
        """Rows are of one of the kernels, or an error: not extracted, or damaged."""
        if self.handle is None or fresh:
            self.handle = open_store(self.path)
        store = self.handle
        stop = min(first + n, store.plan.n_tokens)
        first = min(first, stop - 1)
        try:
            rows = store.activations[machine.HOOKPOINT][first:stop]
        except NotExtractedError as error:
            assert set(error.details["shards"]) & set(store.missing())
            return
        except (CorruptDataError, FormatError, FileNotFoundError):
            assert self.sound
            return
        for shard in range(first // 32, -(-stop // 32)):
            lo, hi = store.shard_range(shard)
            part = slice(max(lo, first) - lo, min(hi, stop) - lo)
            got = rows[max(lo, first) - first : min(hi, stop) - first].tobytes()
            ours = {self._rows(store, shard, noise)[part].tobytes() for noise in self.noises}
            assert got in ours, f"rows [{first}, {stop}) are nobody's"
        self.count("reads")

    def _rows(self, store: Store, shard: int, noise: int) -> Any:
        return machine.shard_rows(store, shard, noise)[0][machine.HOOKPOINT]

    @precondition(lambda self: self.well)
    @rule()
    def look_up(self) -> None:
        """Codes are those of the rows that lie there, whoever wrote them."""
        store = open_store(self.path)
        if (
            machine.FEATURES not in features_of(store)
            or not store.features(machine.FEATURES).encoded
        ):
            return
        features = store.features(machine.FEATURES)
        sae = dictionary(self.ram)
        t_rows = store.row_of(np.arange(store.plan.n_tokens))
        rows = store.activations[machine.HOOKPOINT][t_rows].astype(np.float32)
        codes = np.maximum(rows @ sae, 0).astype(ml_dtypes.bfloat16).astype(np.float32)
        got = features.activations(FEATURE, 0, store.plan.n_tokens)
        np.testing.assert_allclose(got, codes[:, FEATURE], rtol=1e-2)
        if features.indexed:
            assert features.count[FEATURE] == (got > 0).sum()
        self.count("look-ups")

    # What always holds

    @invariant()
    def what_stands_stays(self) -> None:
        """Every record is whole, says what lies there, and what lies there does not change."""
        if not self.planned or self.mending:
            return
        found = files(self.path)
        whole = {**found, **{k: v for k, v in self.sound.items() if v is not None}}
        assert broken_promises(whole) == []
        named = set(whole) - set(self.sound)
        for key, data in self.seen.items():
            if key in named:
                assert whole[key] == data, f"{key} changed"
        if not self.sound:
            self._look_at(found)

    def _look_at(self, found: dict[str, bytes]) -> None:
        """Note what records stand for, as it is seen first."""
        store = open_store(self.path)
        keys = {"ledger/plan.json", "ledger/plan.copy.json", *store.plan_file.objects}
        for key, data in found.items():
            if key.startswith(("ledger/receipts/", "ledger/repairs/", "ledger/features/")):
                keys.add(key)
                if not key.startswith("ledger/features/"):
                    keys |= named_by(data)
        self.seen |= {k: found[k] for k in keys & set(found) if k not in self.seen}

    @invariant()
    def what_has_no_receipt_is_not_read(self) -> None:
        if self.well:
            store = open_store(self.path)
            for shard in store.missing():
                with pytest.raises(NotExtractedError):
                    store.activations[machine.HOOKPOINT][store.shard_range(shard)[0]]

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


def features_of(store: Store) -> list[str]:
    from actlas.store.ledger.feature_sets import names

    return names(store)


def named_by(receipt: bytes) -> set[str]:
    """Return the keys that a receipt names."""
    import json

    return {entry["key"] for entry in json.loads(receipt)["record"]["objects"]}


def dictionary(ram: Path) -> Any:
    """Return the encoder's weights of the sparse autoencoder that is beside every store."""
    from actlas.analysis.sae.saelens_format import load_sae

    return load_sae(ram / machine.FEATURES).W_enc.detach().numpy()


@pytest.fixture
def ram() -> Iterator[Path]:
    with ram_folder() as folder:
        yield folder


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("half", [1, 2])
def test_any_order_of_steps(chaos: Any, ram: Path, monkeypatch: Any, half: int) -> None:
    """In two halves, each with a seed of its own, so that two processes may share the work."""
    monkeypatch.setattr(
        "actlas.store.write.array_writer.COMMIT_THREADS", 1
    )  # the same order every time
    monkeypatch.setattr(lease.Lease, "_beat", lambda self: None)  # no calls at times of their own
    StoreLife.patch = monkeypatch
    machine.save_dictionary(ram / "run.zarr")
    StoreLife.ram, StoreLife.tally = ram, {}
    n_lives, n_steps = chaos.count(25, 500), chaos.count(30, 200)
    session_seed = int(os.environ.get("ACTLAS_CHAOS_SEED", "0"))
    run_state_machine_as_test(
        seed(2 * session_seed + half)(StoreLife),
        settings=settings(
            max_examples=n_lives,
            stateful_step_count=n_steps,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    notes = {what.replace(" ", "_"): n for what, n in sorted(StoreLife.tally.items())}
    chaos.record(f"a state machine, {n_steps} steps (half {half})", n_lives, **notes)
    for what in ("deaths", "commits", "damages", "repairs", "verifications", "reads", "refusals"):
        assert StoreLife.tally.get(what, 0) >= n_lives // 25, (what, StoreLife.tally)
