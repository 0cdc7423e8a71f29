"""Every architecture of transformers: what shares a pass, and whether resid_post is its stream.

The table in ``docs/architectures.md`` is the survey's. The suite runs the architectures that once
went wrong and a fixed sample of the others; ``ACTLAS_SURVEY=long`` all of them, and
``ACTLAS_SURVEY=write`` writes the table (``make survey``).
"""

from __future__ import annotations

import os
import random
import warnings

import pytest
import torch
import transformers
from support.tiny_models import model_types
from support.tiny_models_table import DOCUMENT, outcome, read, write

pytestmark = pytest.mark.slow

FORM = os.environ.get("ACTLAS_SURVEY", "short")
VERSIONS = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}

ONCE_WRONG = (
    "canine",
    "convbert",
    "flaubert",
    "fnet",
    "longformer",
    "mobilebert",
    "paligemma",
    "reformer",
    "rwkv",
    "sam_vision_model",
    "squeezebert",
    "vit_mae",
    "xlm",
    "yoso",
)
N_OTHERS = 8


def chosen() -> list[str]:
    if FORM != "short":
        return list(model_types())
    others = sorted(name for name, title in read().items() if title.startswith("Any sequences"))
    known = [name for name in others if name in model_types() and name not in ONCE_WRONG]
    return [*ONCE_WRONG, *random.Random(13).sample(known, N_OTHERS)]


def same_versions() -> bool:
    said = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    return said in DOCUMENT.read_text(encoding="utf-8")


def test_the_table_names_every_architecture() -> None:
    if FORM == "write" or not same_versions():
        pytest.skip(f"the table is of other versions than {VERSIONS}, or is being written")
    assert sorted(read()) == sorted(model_types())


@pytest.mark.timeout(3600)
def test_accepted_rows_are_transformers_own_and_the_table_says_what_is_accepted() -> None:
    found: dict[str, str] = {}
    reasons: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model_type in chosen():
            found[model_type], reasons[model_type] = outcome(model_type)
    if FORM == "write":
        write(found.items(), VERSIONS)
    if FORM == "write" or same_versions():
        table = read()
        changed = {
            name: (title, table.get(name), reasons[name])
            for name, title in found.items()
            if table.get(name) != title
        }
        assert not changed, "make survey writes the table anew"
