"""Extraction against peers: same model, text, hookpoint, compute dtype and threads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.cases import Case, cases, plan_case
from benchmarks.extraction import Timed
from benchmarks.harness import Contender, Report, Table, alternate, figure_name
from benchmarks.peer_passes import CHECKOUT, OURS, Passes, has_saelens

FULL, BARE, PEER_BARE = "full forward", "forward to the depth", "SAELens's forward"
NAIVE = {torch.float32: "hidden states + save, 32", torch.float16: "hidden states + save, 16"}
SAELENS, BUFFER = "SAELens runner", "dictionary_learning buffer"
SIZES = "Short passes: 2 rounds, one shard each: 4,096 tokens, 2,048 of the GPT-2 shape."


def cpu_per_gb(timed: Timed, rounds: int) -> float:
    """Return CPU-seconds of extraction beyond the bare pass, per GB of rows captured."""
    spent = []
    for n in range(rounds + 1):
        began = time.process_time()
        timed.bare()
        bare = time.process_time() - began
        timed.fresh()
        began = time.process_time()
        timed.extracted()
        if n:  # The first warms up.
            spent.append(time.process_time() - began - bare)
    return statistics.median(spent) / (timed.n_stored / 1e9)


def missing() -> list[str]:
    """Return the missing peers, with instructions to add them."""
    said = []
    if not has_saelens():
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
            Contender(
                name,
                saving(name, lambda dtype=dtype: passes.naive(dtype)),
                check=passes.check_naive,
            )
            for dtype, name in NAIVE.items()
        ),
    ]
    if has_saelens():
        contenders.append(Contender(PEER_BARE, passes.peer_forward))
        contenders.append(
            Contender(
                SAELENS,
                saving(SAELENS, passes.saelens),
                passes.prepare_saelens,
                passes.check_saelens,
            )
        )
    if CHECKOUT in os.environ:
        contenders.append(
            Contender(BUFFER, saving(BUFFER, passes.buffer), check=passes.check_buffer)
        )
    measured = {m.name: m for m in alternate(contenders, case.rounds, OURS["fast"])}
    for profile, name in OURS.items():
        receipts = passes.timed[profile].receipts[-1]
        stored = sum(o.n_bytes for r in receipts for o in r.objects)
        sizes[name] = stored / n
    limits = dict.fromkeys(measured, FULL) | dict.fromkeys(OURS.values(), BARE)
    limits |= {SAELENS: PEER_BARE, PEER_BARE: PEER_BARE, BUFFER: BARE, BARE: BARE}
    amounts = dict.fromkeys(measured, n) | {SAELENS: n_peer, PEER_BARE: n_peer}
    amounts[BUFFER] = passes.n_buffered

    def times(one: str, other: str) -> float:
        """Return the relative speed of two contenders: the median ratio over rounds."""
        pairs = zip(measured[one].seconds, measured[other].seconds, strict=True)
        return statistics.median(
            (amounts[one] / mine) / (amounts[other] / theirs) for mine, theirs in pairs
        )

    for name, m in measured.items():
        rate = amounts[name] / m.median_s
        ours, own = times(OURS["fast"], name), times(name, limits[name])
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
            "documents; it stores sequences in float32; its model is loaded and its "
            "dataset built beforehand. The buffer of dictionary_learning holds float32 in "
            "memory, truncates documents, and "
            "draws more of them until it is full; it tokenizes in each pass. Its rate counts all "
            "activations that it computed. Values of the naive loop, SAELens and the buffer were "
            "compared with a hook on transformers' own module: within 1e-4 of the largest "
            "magnitude (2e-2 in 16 bits).",
            "Ratios are medians of per-round ratios. Bars: actlas at least 1.7 times SAELens; at "
            "least 0.95 of the naive loop in 16 bits; over 1.5 times the full forward pass.",
            *(() if quick else (f"{SIZES}",)),
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
        if not quick:
            middle = replace(
                middle, n_timed=1, n_shards=2, rounds=2, shard_rows=min(4096, middle.shard_rows)
            )
        _add_case(middle, report, table, folder / f"peers-{i}")
    report.tables.append(table)
    whole = every["embedded, all"]
    if not quick:
        whole = replace(whole, n_timed=1, n_shards=2, rounds=2, shard_rows=4096)
    (folder / "peers-cpu" / "fast").mkdir(parents=True)
    planned = plan_case(whole, folder / "peers-cpu" / "fast", compression="fast")
    cost = cpu_per_gb(Timed(whole, planned), whole.rounds)
    report.figures["peers.embedded_all.cpu_s_per_gb"] = cost
    table.notes += (
        f"Embedded model, all hookpoints: {cost:.1f} CPU-seconds per GB captured (bfloat16, "
        "before compression) beyond the bare forward pass on the best batches.",
    )


def run(quick: bool) -> Report:
    """Extract one hookpoint: actlas, SAELens, dictionary_learning, and plain transformers."""
    report = Report("Extraction beside peers")
    if has_saelens():
        report.notes.append(f"SAELens {importlib.metadata.version('sae-lens')}.")
    with tempfile.TemporaryDirectory(prefix="actlas-bench-") as name:
        add_peers(report, Path(name), quick)
    return report


if __name__ == "__main__":
    sys.exit(harness.main("benchmarks.peers", run))
