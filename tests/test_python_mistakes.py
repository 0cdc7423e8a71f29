"""Natural mistakes in Python, and the message that each of them gets.

Every row is a call as one may type it, and words that the message must have: what was got, what was
expected, and what to do, in the words of Python.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.stores import create, fill, plan_for, words_columns

import actlas
from actlas.store.errors import ActlasError

MODEL = "builtin:actlas-6m"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stores to make mistakes with: one whole with labels, one that is not extracted."""
    folder = tmp_path_factory.mktemp("mistakes")
    codes = (np.arange(30) % 2).astype(np.int32)
    labelled = words_columns(0, 30, 12, label=codes, label_names=("sentence", "nonword"))
    whole = create(folder / "whole.zarr", plan_for(labelled), labelled)
    fill(whole)
    plain = words_columns(1, 10, 12)
    fresh = create(folder / "fresh.zarr", plan_for(plain), plain)
    (folder / "notes").mkdir()
    (folder / "notes/a.txt").write_text("mine")
    (folder / "half.zarr").mkdir()
    return SimpleNamespace(
        folder=folder, store=actlas.open(whole.path), fresh=fresh, path=whole.path, new=folder / "n"
    )


MISTAKES: dict[str, tuple[Callable[[Any], object], str]] = {
    # a path that is no store, half-made things
    "no such path": (
        lambda x: actlas.open(x.folder / "nowhere.zarr"),
        r"there is no store here\. Did you mean whole\.zarr\? "
        r"`actlas\.plan\(\"[^`]*nowhere\.zarr\", model=M, corpus=C\)` creates one",
    ),
    "another folder": (lambda x: actlas.open(x.folder / "notes"), "there is no store here"),
    "an empty folder": (lambda x: actlas.verify(x.folder / "half.zarr"), "there is no store here"),
    "not a path": (lambda x: actlas.open(None), r"store: got None \(NoneType\), expected"),
    "a list of stores": (lambda x: actlas.verify([x.store]), r"store: got .*\(list\), expected"),
    "repair of nothing": (lambda x: actlas.repair(x.folder / "no"), "there is no store here"),
    "not extracted yet": (
        lambda x: x.fresh.statistics("resid_post.0"),
        r"no shard is extracted yet: run `actlas\.extract\(\".*fresh\.zarr\"\)`",
    ),
    "rows not extracted yet": (
        lambda x: x.fresh.activations["mlp.1"][0],
        r"`actlas\.extract\(\".*fresh\.zarr\"\)` continues",
    ),
    "units not extracted yet": (
        lambda x: x.fresh.units("mlp.1"),
        r"not extracted yet|is extracted yet|are extracted",
    ),
    # names
    "a hookpoint's typo": (
        lambda x: x.store.activations["resid_pots.0"],
        r"this store has resid_post\.0, mlp\.1\. Did you mean resid_post\.0\?",
    ),
    "a hookpoint by number": (lambda x: x.store.activations[0], r"got 0 \(int\), expected a name"),
    "another tensor of TransformerLens": (
        lambda x: x.store.statistics("blocks.0.attn.hook_q"),
        r"before any rotary embedding.*self_attn\.q_proj",
    ),
    "a layer that is not stored": (
        lambda x: next(iter(actlas.batches(x.path, "blocks.1.hook_resid_post"))),
        r"which is resid_post\.1 here: this store has",
    ),
    "a column's typo": (lambda x: x.store.rows["docidx"], "Did you mean doc_idx or pos_idx"),
    "a set of features that is not there": (
        lambda x: x.store.features("sae"),
        r"it has none\. `actlas\.encode_sae\(\".*\", DIR\)` encodes some",
    ),
    "pooled rows that are not there": (
        lambda x: x.store.pooled["resid_post.0"],
        r"Plan another with pool=\[\"last\", \"mean\", \"sum\"\]",
    ),
    "no such document": (lambda x: x.store.document(99), r"document 99: .* documents 0 to 29"),
    "a document by its text": (
        lambda x: x.store.document("word"),
        r"document: got 'word' \(str\), expected a whole number",
    ),
    "no such row": (lambda x: x.store.rows.token_id[10**9], r"row 1000000000 is outside \[0, "),
    "a row by a name": (lambda x: x.store.activations["mlp.1"]["a"], "got an index of type str"),
    # conditions
    "a label's typo": (
        lambda x: actlas.localize(x.path, "sentense:nonword"),
        r"no label 'sentense'\. This store's labels are: sentence, nonword\. "
        r"Did you mean sentence:nonword\?",
    ),
    "one label": (lambda x: actlas.localize(x.store, "sentence"), "expected two labels, POSITIVE"),
    "no labels": (
        lambda x: actlas.localize(x.fresh, "sentence:nonword"),
        "Plan the store again with label_field=",
    ),
    "another pooling": (
        lambda x: actlas.localize(x.store, "sentence:nonword", pool="max"),
        "pool: got 'max', expected last or mean",
    ),
    # options
    "an option's typo": (
        lambda x: actlas.extract(x.new, modle=MODEL, corpus="builtin:language"),
        r"unknown option 'modle'\. Did you mean model",
    ),
    "an option's typo, of a run": (
        lambda x: actlas.repair(x.path, wokers=2),
        r"^unknown option of the run: 'wokers'\. Did you mean workers",
    ),
    "nothing to plan": (lambda x: actlas.extract(x.new), "a plan needs model= and corpus"),
    "a number as words": (
        lambda x: actlas.plan(x.new, model=MODEL, corpus="builtin:language", max_tokens="many"),
        r"max_tokens: .*got 'many', expected a whole number",
    ),
    "no such corpus": (
        lambda x: actlas.plan(x.new, model=MODEL, corpus=x.folder / "no.jsonl"),
        r"no\.jsonl: there is no such path\. Expected a file, folder or glob",
    ),
    "columns as a mapping": (
        lambda x: actlas.plan(x.new, model=MODEL, corpus={"text": ["a"]}),
        "corpus: got a dict. Expected strings, or mappings",
    ),
    "files as a list": (
        lambda x: actlas.plan(x.new, model=MODEL, corpus=[str(x.folder / "notes/a.txt")]),
        "whose strings are names of files",
    ),
    "another corpus for the same store": (
        lambda x: actlas.extract(x.path, corpus=["Another text."]),
        r"planned with corpus = 'made-up', now asked for 'memory:.* \(corpus=\)",
    ),
    "an executor's typo": (
        lambda x: actlas.extract(x.path, executor="rya"),
        "executor: got 'rya', expected 'inline' or 'ray'",
    ),
    # autoencoders, masks
    "no such autoencoder": (lambda x: actlas.load_sae(x.folder / "no"), "no"),
    "a store as an autoencoder": (lambda x: actlas.load_sae(x.path), "a store"),
    "a folder that is in use": (
        lambda x: actlas.train_sae(x.path, "mlp.1", x.folder / "notes"),
        r"other files, which are left as they are\. Give another out=",
    ),
    "an architecture that is not trained": (
        lambda x: actlas.train_sae(x.path, "mlp.1", x.new, architecture="gated"),
        "architecture",
    ),
    "no such mask": (lambda x: actlas.Mask.load(x.new), r"no such mask\. `actlas\.localize` makes"),
    # tensors
    "a dtype's short name": (
        lambda x: x.store.activations["mlp.1"].torch(0, dtype="bf16"),
        "got 'bf16', expected a torch dtype such as 'float32'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_what_to_do(here: Any, name: str) -> None:
    call, says = MISTAKES[name]
    with pytest.raises((ActlasError, IndexError, KeyError, TypeError), match=says) as caught:
        call(here)
    text = str(caught.value)
    assert " --" not in text and "`actlas " not in text, "it speaks Python"
    assert not here.new.exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("dask", lambda x: actlas.dask_array(x.path, "mlp.1"), "analysis"),
        ("pandas", lambda x: x.store.documents.to_pandas(), "analysis"),
        ("torch", lambda x: x.store.activations["mlp.1"].torch(0), "extract"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    here: Any, monkeypatch: pytest.MonkeyPatch, package: str, call: Any, extra: str
) -> None:
    call(here)
    monkeypatch.setitem(sys.modules, package, None)
    says = rf"needs {package}, which is not installed: pip install 'actlas\[{extra}\]'"
    with pytest.raises(ImportError, match=says):
        call(here)


def test_numpys_bfloat16_becomes_a_tensor(here: Any) -> None:
    import torch

    lazy = here.store.activations["mlp.1"]
    with pytest.raises(TypeError):
        torch.from_numpy(lazy[:3])
    assert lazy.torch(slice(3)).dtype == torch.bfloat16
    assert Path(here.store).name == "whole.zarr"
