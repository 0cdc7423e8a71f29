"""Extraction beside its peers: same model, text, hookpoint, compute type and threads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actlas.pipeline.architecture import quiet
from actlas.pipeline.device import to_device
from actlas.pipeline.feeding import batch_inputs
from benchmarks import harness
from benchmarks.cases import Case, cases, plan_case
from benchmarks.extraction import Timed
from benchmarks.harness import Contender, Report, Table, alternate, figure_name

FULL, BARE, PEER_BARE = "full forward", "forward to the depth", "SAELens's forward"
OURS = {"fast": "actlas, fast", "none": "actlas, none"}
NAIVE = {torch.float32: "hidden states + save, 32", torch.float16: "hidden states + save, 16"}
SAELENS, BUFFER = "SAELens runner", "dictionary_learning buffer"
CHECKOUT = "BENCH_DICTIONARY_LEARNING"


class Passes:
    """The same tokens through transformers alone, and through those peers that are at hand."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.timed = {}
        for profile in OURS:
            where = folder / profile
            where.mkdir()
            planned = plan_case(case, where, compression=profile, model_dtype="float32")
            self.timed[profile] = Timed(case, planned)
        self.first = self.timed["fast"]
        own = self.first.extractor
        (self.hookpoint,) = own.plan.hookpoints
        self.layer = int(self.hookpoint.name.rpartition(".")[2])
        # actlas itself does not load what lies beyond the hookpoint; the others need all of it.
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            case.model, dtype=torch.float32
        ).eval()
        computed = own.plan.model.compute_dtype
        if computed != "float32":
            raise AssertionError(f"actlas computes in {computed}, its peers in float32")
        store = own.store
        self.tokens = store.documents.token_ids(0, self.first.n_rows)
        self.texts = [
            json.loads(line)["text"] for line in (folder / "fast" / "corpus.jsonl").open()
        ]
        self.context = min(case.max_length, len(self.tokens))
        self.n_sequences = len(self.tokens) // self.context
        self.per_batch = max(1, min(self.n_sequences, own.tokens_per_batch // self.context))
        self.n_sequences -= self.n_sequences % self.per_batch
        self.n_saved = 0

    def _inputs(self) -> Iterator[Any]:
        own = self.first.extractor
        for _batch, inputs in batch_inputs(own.store, self.first.best, pad_id=own.pad_id):
            yield inputs, to_device(inputs.arrays, own.device)

    def full(self) -> None:
        with quiet(), torch.inference_mode():
            for _, given in self._inputs():
                self.model(**given, use_cache=False)

    def naive(self, dtype: torch.dtype) -> float:
        """Save the kept rows of each batch; return their bytes per token. Nothing is fsynced."""
        where = self.folder / "naive"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        n_rows = 0
        with quiet(), torch.inference_mode():
            for i, (inputs, given) in enumerate(self._inputs()):
                out = self.model(**given, use_cache=False, output_hidden_states=True)
                hidden = out.hidden_states[self.layer + 1]
                kept = hidden.reshape(-1, hidden.shape[-1])[torch.from_numpy(inputs.kept)]
                np.save(where / f"{i}.npy", kept.to(dtype).numpy())
                n_rows += len(kept)
        if n_rows != self.first.n_rows:
            raise AssertionError(f"the naive loop kept {n_rows} rows of {self.first.n_rows}")
        return _bytes(where) / n_rows

    def sequences(self) -> torch.Tensor:
        """Documents end to end, cut into sequences of one length: what SAELens is given."""
        n = self.n_sequences * self.context
        found = torch.from_numpy(self.tokens[:n].astype(np.int64))
        return found.reshape(self.n_sequences, self.context)

    def peer_forward(self) -> None:
        """Run SAELens's own batches to the depth, nothing kept."""
        with quiet(), torch.inference_mode():
            for batch in self.sequences().split(self.per_batch):
                _stopped(self.model, self.hookpoint.module, batch)

    def saelens(self) -> float:
        """Cache one hookpoint; return bytes per token."""
        from datasets import Dataset
        from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

        where = self.folder / "saelens"
        shutil.rmtree(where, ignore_errors=True)
        n = self.n_sequences * self.context
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fewer samples than tokens: it counts sequences.
            config = CacheActivationsRunnerConfig(
                dataset_path="given",
                model_name=self.case.model,
                model_class_name="AutoModelForCausalLM",
                model_from_pretrained_kwargs={"dtype": torch.float32},
                model_batch_size=self.per_batch,
                hook_name=self.hookpoint.module,
                d_in=self.hookpoint.width,
                training_tokens=n,
                context_size=self.context,
                new_cached_activations_path=str(where),
                shuffle=False,
                dtype="float32",
                device="cpu",
                buffer_size_gb=(n * self.hookpoint.width * 4 + 1) / 1e9,
                prepend_bos=False,
            )
            dataset = Dataset.from_dict({"input_ids": self.sequences().tolist()})
            runner = CacheActivationsRunner(config, override_dataset=dataset)
            found = runner.run()
        if len(found) != self.n_sequences:
            raise AssertionError(f"SAELens kept {len(found)} sequences of {self.n_sequences}")
        return _bytes(where) / n

    def buffer(self) -> float:
        """Fill dictionary_learning's buffer once; nothing is written. Return bytes per token."""
        made = _dictionary_learning().ActivationBuffer(
            itertools.cycle(self.texts),
            self.model,
            self.model.get_submodule(self.hookpoint.module),
            d_submodule=self.hookpoint.width,
            n_ctxs=self.n_sequences,
            ctx_len=self.context,
            refresh_batch_size=self.per_batch,
            add_special_tokens=False,
        )
        made.refresh()
        return made.activations.nbytes / len(made.activations)


class _StopError(Exception):
    pass


def _stopped(model: Any, module: str, batch: torch.Tensor) -> None:
    def stop(*_: Any) -> None:
        raise _StopError

    handle = model.get_submodule(module).register_forward_hook(stop)
    try:
        model(batch, use_cache=False)
    except _StopError:
        pass
    finally:
        handle.remove()


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _dictionary_learning() -> Any:
    path = Path(os.environ[CHECKOUT]) / "dictionary_learning" / "pytorch_buffer.py"
    spec = importlib.util.spec_from_file_location("dictionary_learning_buffer", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{CHECKOUT}: no {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _has_saelens() -> bool:
    return importlib.util.find_spec("sae_lens") is not None


def missing() -> list[str]:
    """Say which peers are left out, and what would bring them in."""
    said = []
    if not _has_saelens():
        said.append("SAELens is not installed, so left out: see requirements-peers.txt.")
    if CHECKOUT not in os.environ:
        said.append(f"dictionary_learning is left out: set {CHECKOUT} to a checkout of it.")
    return said


def _add_case(case: Case, report: Report, table: Table, folder: Path) -> None:
    folder.mkdir()
    passes = Passes(case, folder)
    first, n = passes.first, passes.first.n_rows
    n_peer = passes.n_sequences * passes.context
    sizes: dict[str, float] = {}

    def saving(name: str, work: Any) -> Any:
        def run() -> None:
            sizes[name] = work()

        return run

    contenders = [
        Contender(FULL, passes.full),
        Contender(BARE, first.bare),
        *(
            Contender(name, passes.timed[profile].extracted, passes.timed[profile].fresh)
            for profile, name in OURS.items()
        ),
        *(
            Contender(name, saving(name, lambda dtype=dtype: passes.naive(dtype)))
            for dtype, name in NAIVE.items()
        ),
    ]
    if _has_saelens():
        contenders.append(Contender(PEER_BARE, passes.peer_forward))
        contenders.append(Contender(SAELENS, saving(SAELENS, passes.saelens)))
    if CHECKOUT in os.environ:
        contenders.append(Contender(BUFFER, saving(BUFFER, passes.buffer)))
    measured = {m.name: m for m in alternate(contenders, case.rounds, OURS["fast"])}
    for profile, name in OURS.items():
        receipts = passes.timed[profile].receipts[-1]
        stored = sum(o.n_bytes for r in receipts for o in r.objects)
        sizes[name] = stored / n
    limits = dict.fromkeys(measured, FULL) | dict.fromkeys(OURS.values(), BARE)
    limits |= {SAELENS: PEER_BARE, PEER_BARE: PEER_BARE, BUFFER: BARE, BARE: BARE}
    rates = {
        name: (n_peer if name in (SAELENS, PEER_BARE, BUFFER) else n) / m.median_s
        for name, m in measured.items()
    }
    for name, rate in rates.items():
        ours = rates[OURS["fast"]] / rate
        own = rate / rates[limits[name]]
        size = f"{sizes[name]:,.0f}" if name in sizes else "-"
        table.rows.append(
            (case.name, name, f"{rate:,.0f}", f"{ours:.2f}", f"{own:.2f}", limits[name], size)
        )
        values = {"tokens_per_s": rate, "actlas_times": ours, "of_own_forward": own}
        for key, value in values.items():
            report.figures[figure_name("peers", case.name, name, key)] = value


def add_peers(report: Report, folder: Path, quick: bool) -> None:
    """Add the table of peers: one hookpoint, in the middle."""
    table = Table(
        "Beside peers: the residual stream after the middle block",
        ("model", "who", "tokens/s", "actlas is", "of its forward", "which is", "B/token"),
        notes=(
            "Tokens stored per second; `actlas is`: how many times as fast actlas in `fast` is. "
            "Compute in float32. actlas stores bfloat16, durable, read back, with statistics and "
            "row columns (all counted in B/token); nobody else here makes anything durable. "
            f"`{FULL}`: with the vocabulary projection. `hidden states + save`: "
            "output_hidden_states on actlas's best batches, numpy.save of the kept rows. SAELens "
            "joins documents end to end into sequences of one length, so that tokens see other "
            "documents; it stores sequences in float32 and loads the model in each pass. The "
            "buffer of dictionary_learning holds float32 in memory, truncates documents, and "
            "draws more of them until it is full; it tokenizes in each pass.",
            *missing(),
        ),
    )
    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    every = {c.name: c for c in cases(folder, quick)}
    for i, case in enumerate(every.values()):
        model, _, hookpoints = case.name.partition(", ")
        if hookpoints not in (("all", "middle") if quick else ("one",)):
            continue
        middle = replace(case, name=model, hookpoints="resid_post.middle", memory=False)
        _add_case(middle, report, table, folder / f"peers-{i}")
    report.tables.append(table)


def run(quick: bool) -> Report:
    """Extract one hookpoint: actlas, SAELens, dictionary_learning, and plain transformers."""
    report = Report("Extraction beside peers")
    if _has_saelens():
        report.notes.append(f"SAELens {importlib.metadata.version('sae-lens')}.")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as name:
        add_peers(report, Path(name), quick)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.peers", run))
