"""Images from the command line: a folder with labels becomes a store that every verb reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support.reports import parsed
from support.vision import image_folder, picture, save_llava, save_vision, states_of

from actlas.jobs.cli.app import cli
from actlas.pipeline.model.vision import load_processor
from actlas.store.store import Store, open_store

pytestmark = pytest.mark.slow


def call(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Any, Path]:
    """Reddish and bluish noise, through a tiny ViT, by one command."""
    folder = tmp_path_factory.mktemp("images")
    model = save_vision("vit", folder / "vit")
    image_folder(folder / "in", 12)
    (folder / "in/red/broken.png").write_bytes(b"no picture")
    options = ("--dtype", "float32", "--shard-rows", "128", "--tokens-per-batch", "100")
    done = call(
        "extract", folder / "s.zarr", "--model", folder / "vit", "--corpus", folder / "in", *options
    )
    assert "skipped  1 record skipped: not an image" in done.output
    assert "; labels: blue 12, red 12" in done.output
    assert done.stdout.startswith("done: 600 rows x 3 hookpoints")
    return open_store(folder / "s.zarr"), model, folder


def test_the_units_that_tell_red_from_blue_are_found(
    made: tuple[Store, Any, Path], tmp_path: Path
) -> None:
    stats = pytest.importorskip("scipy.stats")
    pytest.importorskip("dask")
    store, model, folder = made
    options = ("--contrast", "red:blue", "--pool", "mean", "--signed", "--top", "5")
    call("localize", store.path, *options, "--out", tmp_path / "out")
    processor = load_processor(folder / "vit")
    samples: dict[str, list[Any]] = {"red": [], "blue": []}
    for label, found in samples.items():
        for path in sorted((folder / "in" / label).glob("0*.png")):
            states = states_of(model, processor, path)[1:3]
            found.append(np.concatenate([state[1:].astype(float).mean(axis=0) for state in states]))
    t = stats.ttest_ind(samples["red"], samples["blue"], equal_var=False).statistic
    with (tmp_path / "out/units.csv").open() as file:
        rows = {(row["hookpoint"], int(row["unit"])): row for row in csv.DictReader(file)}
    for layer in range(2):
        for unit in range(32):
            told = float(rows[f"resid_post.{layer}", unit]["t"])
            assert told == pytest.approx(t[32 * layer + unit], rel=1e-3, abs=1e-3)
    assert t.max() > 20


def test_every_verb_reads_it(made: tuple[Store, Any, Path], tmp_path: Path) -> None:
    store, _, folder = made
    assert "whole: every byte" in call("verify", store.path, "--full").stdout
    info = call("info", store.path).stdout
    assert "images      5 x 5 patches each, 1 special position without rows" in info
    assert "windows" not in info
    shown = parsed("show", call("show", store.path, "--doc", "13", "--json").stdout)
    assert (shown["label"], shown["source"]) == ("red", "red/001.png")
    assert shown["tokens"][5:7] == ["[1,0] ", "[1,1] "] and set(shown["token_id"]) == {-1}
    text = call("show", store.path, "--doc", "13", "--pos", "6").stdout
    assert ">>[1,1] <<[1,2] [1,3]" in text
    unit = ("--hookpoint", "resid_post.1", "--unit", "3", "--words", "50")
    page = tmp_path / "unit.html"
    call("contexts", store.path, *unit, "--html", page)
    assert all(f"[{r},{c}]" in page.read_text() for r in range(5) for c in range(5))
    again = call("extract", store.path, "--model", folder / "vit", "--corpus", folder / "in")
    assert "600 rows x 3 hookpoints were stored already" in again.stdout
    dry = call(
        "plan", tmp_path / "x", "--model", folder / "vit", "--corpus", folder / "in", "--dry-run"
    ).stdout
    assert "600 tokens in 24 documents" in dry


def test_damage_to_an_image_is_found(made: tuple[Store, Any, Path], tmp_path: Path) -> None:
    _, _, folder = made
    path = tmp_path / "d.zarr"
    call("plan", path, "--model", folder / "vit", "--corpus", folder / "in")
    files = [file for file in (path / "documents/image/c").rglob("*") if file.is_file()]
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)
    done = CliRunner().invoke(cli, ["verify", str(path), "--full"])
    assert done.exit_code == 4, done.output
    assert "documents/image" in done.output


def test_plain_zarr_reads_the_images(made: tuple[Store, Any, Path]) -> None:
    import zarr

    store, _, folder = made
    group = zarr.open_group(store.path, mode="r")
    start, data = group["documents/image_start"][:], group["documents/image"][:]  # type: ignore[index]
    assert len(start) == 25 and start[-1] == len(data)
    raw = np.asarray(data)[int(start[13]) : int(start[14])].tobytes()
    assert raw == (folder / "in/red/001.png").read_bytes()
    with Image.open(folder / "in/red/001.png") as image:
        image.verify()


def test_vision_against_text_is_a_contrast(tmp_path: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    pytest.importorskip("dask")
    model, processor = save_llava(tmp_path / "llava")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(16):
        row = {"text": " ".join(rng.choice(["cat", "dog", "the", "sat"], 3 + i))}
        if i % 2:
            Image.fromarray(picture(rng)).save(tmp_path / f"{i}.png")
            row = {"text": "<image>" + row["text"], "image": f"{i}.png"}
        rows.append(row)
    corpus, store = tmp_path / "a.jsonl", tmp_path / "s.zarr"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--image-field", "image", "--dtype", "float32", "--hookpoints", "resid_post.0")
    call("extract", store, "--model", tmp_path / "llava", "--corpus", corpus, *options)
    contrast = ("--contrast", "modality=image:text", "--pool", "mean", "--signed", "--top", "5")
    call("localize", store, *contrast, "--out", tmp_path / "out")
    vision, text = [], []
    for row in rows:
        with torch.no_grad():
            if "image" in row:
                with Image.open(tmp_path / row["image"]) as image:
                    made = processor(text=[row["text"]], images=[image], return_tensors="pt")
            else:
                made = processor.tokenizer(row["text"], return_tensors="pt")
            states = model(**made, output_hidden_states=True).hidden_states[1][0, 1:].numpy()
        patches = made["input_ids"][0, 1:].numpy() == model.config.image_token_id
        text.append(states[~patches].astype(float).mean(axis=0))
        if patches.any():
            vision.append(states[patches].astype(float).mean(axis=0))
    t = stats.ttest_ind(vision, text, equal_var=False).statistic
    with (tmp_path / "out/units.csv").open() as file:
        told = [float(row["t"]) for row in csv.DictReader(file)]
    assert len(vision) == 8 and np.abs(t).max() > 5
    assert told == pytest.approx(t.tolist(), rel=1e-3, abs=1e-3)
