"""The commands that make stores: complete ones, interrupted ones, damaged ones.

The fixture's builder runs them with the old code; the tests in both directions run them with both.
"""

from __future__ import annotations

from compatibility.checkout import HERE, Step, cli, copy, flip, remove

RUN = ("--threads", 1, "--device", "cpu")
"""Options of a run under which one machine computes the same bits each time."""
MODEL = ("--model", f"{HERE}/model", "--model-dtype", "float32")
WHOLE = (
    *MODEL,
    *("--corpus", f"{HERE}/corpus.jsonl", "--label-field", "meta.kind", "--span-fields", "parts"),
    *("--hookpoints", "resid_post.0,mlp_hidden.0,resid_post.1", "--order", "shuffled"),
    *("--long", "window", "--max-length", 32, "--keep-special", "--with-loss"),
    *("--pool", "mean,last", "--compression", "dense", "--shard-rows", 256, "--seed", 3),
)
"""Profile ``dense``, bfloat16, shuffled rows, with every further column that a text store has."""
RAW = (
    *MODEL,
    *("--corpus", f"{HERE}/corpus.jsonl", "--label-field", "meta.kind"),
    *("--hookpoints", "resid_post.1"),
    *("--max-length", 24, "--dtype", "float32", "--compression", "none", "--shard-rows", 128),
)
"""Profile ``none``, float32, corpus order, long documents truncated."""
CHAT = (
    *MODEL,
    *("--corpus", f"{HERE}/chat.jsonl", "--messages-field", "messages"),
    *("--hookpoints", "attn_out.1"),
    *("--dtype", "float16", "--compression", "fast", "--shard-rows", 64, "--max-length", 64),
)
"""Profile ``fast``, float16, a corpus of messages."""
IMAGES = (
    *("--model", f"{HERE}/vision", "--model-dtype", "float32", "--corpus", f"{HERE}/images"),
    *("--hookpoints", "resid_post.1", "--pool", "mean", "--pooled-only"),
)
"""Images; pooled rows alone."""
SAE = ("--sae", f"{HERE}/codes")
UNITS = "resid_post.0"
"""The hookpoint whose extremes (top and bottom tokens of each unit) are gathered."""


def extracted(store: str, options: tuple[object, ...]) -> list[Step]:
    """Return the steps that plan and extract a store."""
    return [cli("extract", store, *options, *RUN)]


def derived(store: str) -> list[Step]:
    """Return the steps that encode a store, index its features and gather its extremes."""
    return [
        cli("sae", "encode", store, *SAE, *RUN),
        cli("sae", "index", store, "--sae", "codes"),
        cli("contexts", store, "--hookpoint", UNITS, "--unit", 3, "-k", 2),
    ]


def training(store: str, out: str) -> tuple[object, ...]:
    """Return the command that trains a sparse autoencoder and saves it in the folder ``out``."""
    return (
        *("sae", "train", store, "--out", out, "--hookpoint", "resid_post.1", *RUN),
        *("--width", 32, "--k", 4, "--steps", 12, "--batch-size", 128, "--checkpoint-every", 4),
    )


def contrast(store: str, out: str) -> tuple[object, ...]:
    """Return the command that localizes a contrast and saves it in the folder ``out``."""
    return ("localize", store, "--contrast", "animals:weather", "--pool", "mean", "--out", out)


def results(store: str, prefix: str = "") -> list[Step]:
    """Return the steps that make the folders ``trained``, ``half-trained`` and ``mask``."""
    half = f"{prefix}half-trained"
    return [
        cli(*training(store, f"{prefix}trained")),
        cli(*training(store, half), kill="/checkpoint.safetensors", nth=2),
        cli(*contrast(store, f"{prefix}mask")),
        remove(f"{prefix}trained/*.png"),
        remove(f"{prefix}mask/*.png"),
        remove(f"{prefix}mask/summary.json"),  # it names the store's path
    ]


def half_extracted(planned: str, whole: str, store: str) -> list[Step]:
    """Return steps that leave shard 1 in quarantine and shard 3 written without a receipt."""
    rows = "activations/resid_post.0/c"
    return [
        copy(planned, store),
        copy(f"{whole}/{rows}/0/0", f"{store}/{rows}/1/0"),  # another shard's file
        cli("extract", store, "--max-task-faults", 1, *RUN, kill="receipts/extract/00000003.json"),
        remove(f"{store}/{rows}/1/0"),
    ]


def half_encoded(planned: str, store: str) -> list[Step]:
    """Return steps that leave some shards not pooled, and some not encoded."""
    return [
        copy(planned, store),
        cli("extract", store, *RUN, kill="receipts/pooled/00000001.json"),
        cli("sae", "encode", store, *SAE, *RUN, kill="receipts/encode.codes/00000002.json"),
    ]


def half_indexed(encoded: str, store: str, at: str) -> list[Step]:
    """Return steps that kill the index at the file ``at``, and the extremes at their receipt."""
    return [
        copy(encoded, store),
        cli("sae", "index", store, "--sae", "codes", kill=at),
        cli(
            *("contexts", store, "--hookpoint", UNITS, "--unit", 3),
            kill=f"receipts/extremes.{UNITS}/00000000.json",
        ),
    ]


def damaged(whole: str, store: str) -> list[Step]:
    """Return steps that damage a file of each kind that can be repaired, and remove a receipt."""
    return [
        copy(whole, store),
        flip(f"{store}/ledger/plan.json"),
        flip(f"{store}/ledger/zarr.json"),
        flip(f"{store}/ledger/features/codes.json"),
        flip(f"{store}/ledger/receipts/extract/00000003.json"),
        flip(f"{store}/activations/resid_post.0/c/1/0"),
        flip(f"{store}/statistics/resid_post.1/c/2/0/0"),
        flip(f"{store}/pooled/resid_post.1/mean/c/0/0"),
        flip(f"{store}/documents/text/c/0"),
        flip(f"{store}/documents/label/zarr.json"),
        flip(f"{store}/features/codes/tokens/00000004-*/data/c/0"),
        flip(f"{store}/features/codes/index/00000000-*/indices/c/0"),
        flip(f"{store}/extremes/{UNITS}-*/top_t/c/0/0"),
        remove(f"{store}/rows/doc_idx/c/0"),
        remove(f"{store}/ledger/receipts/pooled/00000001.json"),
    ]
