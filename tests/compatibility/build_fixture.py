"""Build the fixture: small stores written by the code of one commit, and an oracle.

Run ``PYTHONPATH=tests python -m compatibility.build_fixture [COMMIT]`` in a checkout whose history
has that commit. Its code runs in a process of its own, from a ``git archive``; this process imports
none of it. The folder ``fixture`` then holds

- the inputs of the stores: ``model``, ``vision``, ``codes`` (a sparse autoencoder), the corpora;
- ``stores/NAME.tar.xz``: the stores (see ``STORES``) and folders of results (see ``RESULTS``);
- ``oracle.json``: the SHA-256 of every array of the complete stores, decoded by ``plain_reader``,
  and what that commit's code answers about the stores;
- ``rows.npz``: activations and losses by token, from transformers' own forward passes.

Where the arrays of a store are not what transformers gives, nothing is written. A second build on
the same machine gives the same plans and arrays; it differs in run times, process numbers and names
of attempts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import lzma
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatibility import checkout, commands, inputs, plain_reader
from compatibility.checkout import HERE, Step, cli, copy, flip, release
from compatibility.comparison import check_derived, decoded

FIXTURE = Path(__file__).with_name("fixture")
STORES = {
    "whole": "profile dense, bfloat16: rows, loss, special tokens, labels, spans, pooled rows, "
    "features, an index of several blocks, extremes",
    "raw": "profile none, float32; shard 2 was repaired and has a receipt of generation 1",
    "chat": "profile fast, float16, a corpus of messages with a column of roles",
    "pictures": "images; pooled rows alone",
    "half-extracted": "shards 0 and 2 done, 1 in quarantine, 3 lacks its receipt, 4 not begun",
    "half-encoded": "all rows; one shard pooled, two encoded, the next of each without receipt",
    "half-indexed": "two blocks indexed, the third without receipt; extremes without receipt",
    "damaged": "as `whole`, with a damaged or missing file of each kind",
}
WHOLE = ("whole", "raw", "chat", "pictures")
RESULTS = {
    "trained": "a sparse autoencoder trained on `whole`",
    "half-trained": "the same training, killed when it was about to write its second checkpoint",
    "mask": "the mask of a contrast on `whole`",
}
BLOCK_CODES = 1500
"""Entries of a block of the index: few, so that there are several blocks."""
LIMIT_BYTES = 1_500_000
"""The fixture must not be larger."""
_PATHS = re.compile(rb"(/home/|/Users/|/root/|/work/|/tmp/|/dev/shm/)[A-Za-z]")


def steps() -> list[Step]:
    """Return the steps that make all stores and results."""
    third = "receipts/index.codes/00000010.json"
    small_blocks = {
        "do": "default",
        "function": "actlas.analysis.index:index_features",
        "name": "block_codes",
        "value": BLOCK_CODES,
    }
    return [
        small_blocks,
        cli("plan", "planned", *commands.WHOLE),
        copy("planned", "whole"),
        cli("extract", "whole", *commands.RUN),
        *commands.half_extracted("planned", "whole", "half-extracted"),
        release("half-extracted"),
        *commands.half_encoded("planned", "half-encoded"),
        release("half-encoded"),
        *commands.derived("whole")[:1],
        *commands.half_indexed("whole", "half-indexed", third),
        release("half-indexed"),
        *commands.derived("whole")[1:],
        *commands.damaged("whole", "damaged"),
        *commands.results("whole"),
        *commands.extracted("raw", commands.RAW),
        flip("raw/activations/resid_post.1/c/2/0"),
        # Other batches give other last bits in float32, hence a receipt of the next generation.
        cli("repair", "raw", "--tokens-per-batch", 24, *commands.RUN),
        *commands.extracted("chat", commands.CHAT),
        *commands.extracted("pictures", commands.IMAGES),
    ]


def asked() -> list[Step]:
    """Return the questions about the stores whose answers are recorded."""
    return [
        *(cli("verify", name, "--full", "--json", code=4 * (name == "damaged")) for name in STORES),
        *(cli("info", name, "--json") for name in STORES if name != "damaged"),
        *(cli("show", name, "--doc", 3, "--pos", 2, "--json") for name in WHOLE),
        cli("contexts", "whole", "--sae", "codes", "--feature", 5, "-k", 6, "--json"),
        cli("contexts", "whole", "--hookpoint", commands.UNITS, "--unit", 3, "-k", 6, "--json"),
    ]


def main() -> None:
    """Build the fixture of the commit that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("commit", nargs="?", default=checkout.OLD)
    parser.add_argument("--out", type=Path, default=FIXTURE, help="default: beside this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fixture-") as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        inputs.make(work)
        made_of = sorted(path.name for path in work.iterdir())
        source = checkout.archive(given.commit, Path(temporary) / "code")
        results = checkout.run(source, work, [*steps(), *asked()])
        for result in results:
            result.check()
        _check_states(work)
        own = {str(source): f"{HERE}/code", str(work): HERE}
        said = {}
        for result in results[-len(asked()) :]:
            answer = json.loads(_without(result.stdout, own))
            answer.pop("seconds", None)
            said[result.command] = answer
        oracle: dict[str, Any] = {"commit": given.commit, "said": said, "arrays": {}}
        rows: dict[str, NDArray[Any]] = {}
        for name in WHOLE:
            found = decoded(work / name)
            rows |= {f"{name}/{key}": values for key, values in truth(work, name, found).items()}
            for key, values in sorted(found.items()):
                oracle["arrays"][f"{name}/{key}"] = plain_reader.digest(values)
        for name in (*STORES, *RESULTS):
            _clean(work / name, own)
        shutil.rmtree(given.out, ignore_errors=True)
        (given.out / "stores").mkdir(parents=True)
        for path in (work / name for name in made_of):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, given.out / path.name)
        for name in (*STORES, *RESULTS):
            pack(work / name, given.out / "stores" / f"{name}.tar.xz")
    write_oracle(given.out / "oracle.json", oracle)
    np.savez_compressed(given.out / "rows.npz", **rows)  # type: ignore[arg-type]
    sizes = {p: p.stat().st_size for p in sorted(given.out.rglob("*")) if p.is_file()}
    for path, size in sizes.items():
        path.chmod(0o644)
        sys.stdout.write(f"{size:>9,}  {path.relative_to(given.out)}\n")
    sys.stdout.write(f"{sum(sizes.values()):>9,}  in all, by {given.commit[:12]}\n")
    if sum(sizes.values()) > LIMIT_BYTES:
        sys.exit(f"the fixture is larger than {LIMIT_BYTES:,} bytes")


def write_oracle(file: Path, oracle: dict[str, Any]) -> None:
    """Write the oracle with an answer or an array per line."""
    lines = {
        part: [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in oracle[part].items()]
        for part in ("said", "arrays")
    }
    parts = [f'"commit": {json.dumps(oracle["commit"])}']
    parts += [f'"{part}": {{\n' + ",\n".join(each) + "\n}" for part, each in lines.items()]
    file.write_text("{" + ",\n".join(parts) + "}\n")


def truth(work: Path, name: str, found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what transformers gives for a store; raise where the store's arrays differ.

    Activations [token, unit] and losses [token] are in document order, pooled rows [document,
    unit]; all are float16. Each window is run in a forward pass of its own.
    """
    plan = plain_reader.plan(work / name)
    if name == "pictures":
        rows = {"pooled/resid_post.1/mean": _pictures(work / "vision", work / name, found)}
        _same(rows["pooled/resid_post.1/mean"], found["pooled/resid_post.1/mean"], 1e-5)
    else:
        rows = _passes(work / "model", plan, found)
        start = found["documents/start"]
        t = start[found["rows/doc_idx"]] + found["rows/pos_idx"]
        assert sorted(t.tolist()) == list(range(plan["n_tokens"]))
        rounding = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 1e-5}[plan["dtype"]]
        for hookpoint in plan["hookpoints"]:
            key = f"activations/{hookpoint['name']}"
            _same(rows[key][t], found[key], rounding)
        if "rows/loss" in found:
            _same(rows["rows/loss"][t], found["rows/loss"], 1e-5)
        for key in [key for key in found if key.startswith("pooled/")]:
            _, hookpoint, pool = key.split("/")
            own = rows[f"activations/{hookpoint}"]
            documents = [own[a:b] for a, b in itertools.pairwise(start)]
            none = np.full(own.shape[1], np.nan, np.float32)
            by = {"last": lambda part: part[-1], "mean": lambda part: part.mean(axis=0)}[pool]
            pooled = np.array([by(part) if len(part) else none for part in documents])
            _same(pooled, found[key], 1e-5)
        with contextlib.chdir(work):
            check_derived(found)
    return {key: values.astype(np.float16) for key, values in rows.items()}


def _passes(
    folder: Path, plan: dict[str, Any], found: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    blocks = model.eval().model.layers
    seen: dict[str, Any] = {}

    def keep(key: str, value: Any) -> None:
        seen[key] = (value[0] if isinstance(value, tuple) else value)[0].numpy()

    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _a, out, i=i: keep(f"resid_post.{i}", out))
        block.self_attn.register_forward_hook(lambda _m, _a, out, i=i: keep(f"attn_out.{i}", out))
        block.mlp.down_proj.register_forward_pre_hook(lambda _m, a, i=i: keep(f"mlp_hidden.{i}", a))
    special = plan["keep_special"]
    prefix = [] if special else list(plan["tokenizer"]["prefix_ids"])
    content = plan["windows"]["max_length"] - len(prefix)
    names = [hookpoint["name"] for hookpoint in plan["hookpoints"]]
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in [*names, "loss"]}
    edges = found["documents/start"].tolist()
    for begin, end in itertools.pairwise(edges):
        for at in range(begin, end, content):
            ids = prefix + found["documents/token_id"][at : min(at + content, end)].tolist()
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            for name in names:
                parts[name].append(seen[name][len(prefix) :])
            loss = torch.nn.functional.cross_entropy(
                logits[:-1], torch.tensor(ids[1:]), reduction="none"
            )
            parts["loss"].append(np.append(loss.numpy(), np.float32(np.nan))[len(prefix) :])
    rows = {f"activations/{name}": np.concatenate(parts[name]) for name in names}
    return rows | ({"rows/loss": np.concatenate(parts["loss"])} if plan["with_loss"] else {})


def _pictures(folder: Path, store: Path, found: dict[str, NDArray[Any]]) -> NDArray[Any]:
    import torch
    import transformers
    from PIL import Image

    model: Any = transformers.ViTModel.from_pretrained(
        folder, dtype=torch.float32, add_pooling_layer=False
    )
    processor: Any = transformers.ViTImageProcessorPil.from_pretrained(folder)
    data, start = found["documents/image"].tobytes(), found["documents/image_start"].tolist()
    last: list[Any] = []
    blocks = next(m for m in model.eval().modules() if isinstance(m, torch.nn.ModuleList))
    blocks[-1].register_forward_hook(lambda _m, _a, out: last.append(out))
    rows = []
    for begin, end in itertools.pairwise(start):
        with Image.open(io.BytesIO(data[begin:end])) as image:
            made = processor(images=[image.convert("RGB")], return_tensors="pt")
        with torch.no_grad():
            model(**made)
        out = last.pop()
        rows.append((out[0] if isinstance(out, tuple) else out)[0, 1:].numpy().mean(axis=0))
    return np.array(rows)


def _same(rows: NDArray[Any], stored: NDArray[Any], rounding: float) -> None:
    """Raise where stored values differ by more than a rounding, or than sums in float32 do."""
    np.testing.assert_allclose(
        stored.astype(np.float64), rows.astype(np.float64), rtol=rounding, atol=2e-5
    )


def _check_states(work: Path) -> None:
    """Raise where a store is not in the state that ``STORES`` says."""

    def done(store: str, job: str) -> list[int]:
        return list(plain_reader.receipts(work / store, job))

    assert done("half-extracted", "extract") == [0, 2]
    assert (work / "half-extracted/ledger/quarantine/extract/00000001.json").exists()
    assert (work / "half-extracted/activations/resid_post.1/c/3/0").exists()
    assert not (work / "half-extracted/rows/token_id/c/4").exists()
    assert done("half-encoded", "extract") == [0, 1, 2, 3, 4]
    assert done("half-encoded", "pooled") == [0]
    assert done("half-encoded", "encode.codes") == [0, 1]
    assert done("half-indexed", "index.codes") == [0, 7]
    assert not plain_reader.has(work / "half-indexed", "indexed.codes")
    assert not plain_reader.has(work / "half-indexed", f"extremes.{commands.UNITS}")
    assert list((work / "half-indexed/extremes").glob(f"{commands.UNITS}-*"))
    assert len(done("whole", "index.codes")) > 3, "several blocks"
    raw = plain_reader.receipts(work / "raw", "extract")
    generations = {shard: receipt["generation"] for shard, receipt in raw.items()}
    assert generations[2] == 1 and set(generations.values()) == {0, 1}
    assert sorted(path.name for path in (work / "half-trained").iterdir()) == [
        ".checkpoint.safetensors.part",
        "checkpoint.safetensors",
    ]
    for name in ("half-extracted", "half-encoded", "half-indexed"):
        assert list((work / name / "ledger/staging").iterdir()), "a kill leaves staged files"


def _without(text: str, own: dict[str, str]) -> str:
    """Return a text with placeholders for the paths of this machine."""
    instead = {**own, sys.base_prefix: "/usr", sys.prefix: "/usr"}
    for path in sorted(instead, key=len, reverse=True):
        text = text.replace(path, instead[path])
    return text


def _clean(store: Path, own: dict[str, str]) -> None:
    """Take paths of this machine out of logs and quarantine; raise where another file has one."""
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        if path.relative_to(store).parts[:2] in (("ledger", "logs"), ("ledger", "quarantine")):
            path.write_text(_without(path.read_text(), own))
        if found := _PATHS.search(path.read_bytes()):
            raise ValueError(f"{path.relative_to(store.parent)} names {found[0].decode()}…")


def pack(store: Path, archive: Path) -> None:
    """Pack a folder into one archive, which depends on names and bytes of its files alone."""
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(store.rglob("*")):
            entry = tarfile.TarInfo(f"{store.name}/{path.relative_to(store).as_posix()}")
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)


if __name__ == "__main__":
    main()
