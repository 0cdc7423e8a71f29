"""Texts with images in them. The oracle is transformers' processor and model on each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.models import worst
from support.vision import SIDE, image_folder, picture, save_llava

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.inputs import shard_batches
from actlas.pipeline.forward.cost import speed
from actlas.pipeline.forward.invariants import check_causal
from actlas.pipeline.forward.load import load_model
from actlas.pipeline.forward.strategy import decide_strategy
from actlas.pipeline.model.config import quiet
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan.make import make_plan
from actlas.store.errors import ConfigError, CorpusError, ModelError
from actlas.store.store import Store

pytestmark = pytest.mark.slow

N_PATCHES = (SIDE // 8) ** 2
NAMES = ("resid_post.0", "resid_post.1")


@pytest.fixture(autouse=True)
def _no_timing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a forward pass only where a test is about it."""
    if "speed" not in request.node.name:
        monkeypatch.setattr(
            "actlas.pipeline.plan.estimate.forward_speed",
            lambda *_, **__: speed.Speed(None, "not here"),
        )


class Llava(NamedTuple):
    model: Any
    processor: Any
    folder: Path


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Llava:
    folder = tmp_path_factory.mktemp("models") / "llava"
    return Llava(*save_llava(folder), folder)


def write(folder: Path, n: int) -> list[dict[str, str]]:
    """Records of texts, every third with an image, at its beginning, in the middle, at its end."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    words = ["cat", "dog", "язык", "sat", "\n", "[0,0]", "你好", "the"]
    rows = []
    for i in range(n):
        row = {"text": " ".join(rng.choice(words, int(rng.integers(1, 30)))), "label": "text"}
        if i % 3 == 0:
            Image.fromarray(picture(rng)).save(folder / f"{i}.png")
            row |= {"image": f"{i}.png", "label": "image"}
            around = ("{}", "look at <image>, {}", "<image>{}", "{} <image>")
            row["text"] = around[i // 3 % 4].format(row["text"])
        rows.append(row)
    rows[0].pop("text")
    rows[4]["text"] = "no <image> here, only the </s> word <|eos|>"
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def plan(path: Path, llava: Llava, corpus: Path, **options: Any) -> Store:
    given = {"dtype": "float32", "shard_rows": 64, "max_length": 256, **options}
    return make_plan(path, PlanOptions(model=str(llava.folder), corpus=str(corpus), **given))


def extracted(store: Store, tokens_per_batch: int = 300) -> Store:
    extractor = Extractor(store, RunOptions(device="cpu", tokens_per_batch=tokens_per_batch))
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    return store


def alone(llava: Llava, row: dict[str, str], folder: Path) -> tuple[list[int], list[Any]]:
    """Token ids and hidden states of one record as transformers itself makes them."""
    text = row.get("text", "")
    with torch.no_grad(), quiet():
        if "image" in row:
            if "<image>" not in text:
                text = "<image>" + ("\n" + text if text else "")
            with Image.open(folder / row["image"]) as image:
                made = llava.processor(text=[text], images=[image], return_tensors="pt")
        else:
            plain = llava.processor.tokenizer
            made = plain(text, split_special_tokens=True, return_tensors="pt")
        states = llava.model(**made, output_hidden_states=True).hidden_states
    return made["input_ids"][0].tolist(), [state[0].numpy() for state in states]


@pytest.mark.parametrize("order", ["corpus", "shuffled"])
@pytest.mark.parametrize("tokens_per_batch", [60, 1000])
def test_every_row_is_transformers_own(
    tmp_path: Path, llava: Llava, order: str, tokens_per_batch: int
) -> None:
    rows = write(tmp_path / "in", 40)
    store = plan(tmp_path / "s.zarr", llava, tmp_path / "in", image_field="image", order=order)
    extracted(store, tokens_per_batch)
    got = store.plan
    assert got.processor is not None
    assert got.model.modality == "mixed" and got.model.causal
    assert got.n_documents == 40
    image_id = llava.model.config.image_token_id
    assert got.processor.image_token_id == image_id
    assert got.token_columns == ("modality",)
    found = store.rows.columns["modality"][:]
    assert (found == (store.rows.token_id[:] == -1)).all() and 0 < found.sum() < len(found)
    named = json.loads((tmp_path / "s.zarr/documents/modality/zarr.json").read_text())
    assert named["attributes"]["names"] == ["text", "image"]
    crossed = 0
    for doc_idx in range(40):
        document = store.document(doc_idx)
        row = rows[document.source.record]
        ids, states = alone(llava, row, tmp_path / "in")
        wanted = [-1 if token == image_id and "image" in row else token for token in ids]
        assert document.token_id.tolist() == wanted[1:], row
        assert "".join(document.tokens) == document.text
        for name, state in zip(NAMES, states[1:], strict=False):
            assert worst(document.activations[name], state[1:]) < 1e-5, (doc_idx, name)
        patches = document.start + np.flatnonzero(document.token_id == -1)
        assert len(patches) == ("image" in row) * N_PATCHES
        crossed += len(set((patches // 64).tolist())) > 1
        stored = store.documents.image(doc_idx)
        assert stored == ((tmp_path / "in" / row["image"]).read_bytes() if "image" in row else None)
    assert crossed >= 3  # shard borders fall inside images


def test_a_sequence_stops_at_a_border_but_never_inside_an_image(
    tmp_path: Path, llava: Llava
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(picture(np.random.default_rng(0))).save(folder / "x.png")
    head = " ".join(["cat"] * 20)
    rows = [
        {"text": f"{head} <image> {head} {head} {head}", "image": "x.png"},
        {"text": " ".join(["dog"] * 60)},
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = plan(
        tmp_path / "s.zarr", llava, folder, image_field="image", order="corpus", shard_rows=16
    )
    document = store.document(0)
    patches = np.flatnonzero(document.token_id == -1)
    first, stop = int(patches[0]), int(patches[-1]) + 1
    for shard in range(store.plan.n_shards):
        _, end = store.shard_range(shard)
        for batch in shard_batches(store, shard, 1000):
            for each in batch.sequences:
                sequence = each.content
                if sequence.doc_idx == 1:
                    assert sequence.stop == min(end, store.plan.n_tokens)
                elif first < end < stop:
                    assert sequence.stop == stop
                else:
                    assert sequence.stop == min(end, len(document))
    extracted(store)
    _, states = alone(llava, rows[0], folder)
    assert worst(document.activations["resid_post.1"], states[2][1:]) < 1e-5


def test_texts_alone_and_images_alone(tmp_path: Path, llava: Llava) -> None:
    image_folder(tmp_path / "images", 2)
    store = extracted(plan(tmp_path / "a.zarr", llava, tmp_path / "images"))
    assert [store.document(i).label for i in range(4)] == ["blue", "blue", "red", "red"]
    row = {"image": store.document(3).source.name}
    _, states = alone(llava, row, tmp_path / "images")
    assert worst(store.document(3).activations["resid_post.0"], states[1][1:]) < 1e-5
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jsonl").write_text('{"text": "one two <image> three"}\n' * 3)
    store = extracted(plan(tmp_path / "b.zarr", llava, tmp_path / "texts"))
    _, states = alone(llava, {"text": "one two <image> three"}, tmp_path)
    assert worst(store.document(2).activations["resid_post.0"], states[1][1:]) < 1e-5
    assert store.documents.image(0) is None
    assert store.plan.model.modality == "text" and store.plan.processor is None


def test_windows_behind_the_image_are_text_alone(tmp_path: Path, llava: Llava) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(picture(np.random.default_rng(0))).save(folder / "x.png")
    row = {"text": "<image>" + " cat sat" * 30, "image": "x.png"}
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    store = plan(tmp_path / "s.zarr", llava, folder, image_field="image", max_length=40)
    extracted(store)
    document = store.document(0)
    ids, states = alone(llava, row, folder)
    assert len(document) == len(ids) - 1 > 2 * 39
    rows: NDArray[Any] = document.activations["resid_post.1"]
    assert worst(rows[:39], states[2][1:40]) < 1e-5
    for start in range(39, len(document), 39):
        window = [ids[0], *ids[start + 1 : start + 40]]
        with torch.no_grad(), quiet():
            found = llava.model(torch.tensor([window]), output_hidden_states=True).hidden_states
        assert worst(rows[start : start + 39], found[2][0, 1:].numpy()) < 1e-5


def test_what_cannot_be_placed_is_skipped_and_counted(tmp_path: Path, llava: Llava) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(picture(np.random.default_rng(0))).save(folder / "x.png")
    n = SIDE // 8
    grid = "\n".join(" ".join(f"[{r},{c}]" for c in range(n)) for r in range(n))
    rows = [
        {"text": "good", "image": "x.png"},
        {"text": "<image> and <image>", "image": "x.png"},
        {"text": f"a text that is a {grid} itself"},
        {"text": " ".join(["cat"] * 30) + "<image>", "image": "x.png"},
        {"text": "broken", "image": "y.png"},
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines: list[str] = []
    options = PlanOptions(
        model=str(llava.folder), corpus=str(folder), image_field="image", max_length=41
    )
    store = make_plan(tmp_path / "s.zarr", options, lines.append)
    assert [store.document(i).source.record for i in range(len(store.documents))] == [0]
    said = "\n".join(line for line in lines if line.startswith("skipped"))
    for reason in (
        "1 record skipped: one image, and <image> several times",
        "1 record skipped: a text that reads like the grid of an image",
        "1 record skipped: an image that lies in no single window",
        "1 record skipped: no such image file",
    ):
        assert reason in said, (reason, said)


def test_an_image_that_no_window_holds_is_refused(tmp_path: Path, llava: Llava) -> None:
    write(tmp_path / "in", 6)
    with pytest.raises(ConfigError, match=r"An image has 25 tokens, .* holds 24"):
        plan(tmp_path / "s.zarr", llava, tmp_path / "in", image_field="image", max_length=25)
    with pytest.raises(CorpusError, match="none of 6 records has text or an image"):
        plan(tmp_path / "s.zarr", llava, tmp_path / "in", text_field="nothing", image_field="no")


def test_an_image_field_is_refused_for_a_model_of_text(tmp_path: Path) -> None:
    write(tmp_path / "in", 6)
    options = PlanOptions(
        model="builtin:actlas-6m", corpus=str(tmp_path / "in"), image_field="image"
    )
    with pytest.raises(ConfigError, match="image_field="):
        make_plan(tmp_path / "s.zarr", options)


def test_a_model_whose_text_sees_later_tokens_once_there_is_an_image_is_refused(
    tmp_path: Path, llava: Llava
) -> None:
    write(tmp_path / "in", 6)
    store = plan(tmp_path / "s.zarr", llava, tmp_path / "in", image_field="image")
    model = load_model(store.plan.model, str(llava.folder), "cpu")
    hookpoints, processor = store.plan.hookpoints, store.plan.processor
    check_causal(model, hookpoints, processor)

    def leak(_module: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("pixel_values") is not None:
            ids = kwargs["input_ids"].clone()
            ids[:, 0] = ids[:, -1]
            kwargs["input_ids"] = ids
        return args, kwargs

    handle = model.register_forward_pre_hook(leak, with_kwargs=True)
    check_causal(model, hookpoints)
    with pytest.raises(ModelError, match="is causal, but at resid_post"):
        check_causal(model, hookpoints, processor)
    handle.remove()


def test_images_that_change_each_other_are_computed_one_at_a_time(
    tmp_path: Path, llava: Llava
) -> None:
    rows = write(tmp_path / "in", 12)
    store = plan(tmp_path / "s.zarr", llava, tmp_path / "in", image_field="image")
    extractor = Extractor(store, RunOptions(device="cpu", tokens_per_batch=300))
    assert extractor.strategy.batching == "padded"
    model = extractor.model

    def mix(_module: Any, _args: Any, kwargs: Any) -> Any:
        pixels = kwargs.get("pixel_values")
        if pixels is not None:
            kwargs["pixel_values"] = pixels + 0.2 * (pixels.mean(dim=0, keepdim=True) - pixels)
        return _args, kwargs

    model.register_forward_pre_hook(mix, with_kwargs=True)
    run = RunOptions(device="cpu", tokens_per_batch=300)
    with quiet():
        extractor.strategy = decide_strategy(model, store.plan, run, "cpu")
    assert extractor.strategy.batching == "single"
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    for doc_idx in range(len(store.documents)):
        document = store.document(doc_idx)
        _, states = alone(llava, rows[document.source.record], tmp_path / "in")
        assert worst(document.activations["resid_post.1"], states[2][1:]) < 1e-5


def test_special_tokens_get_rows_where_asked_for(tmp_path: Path, llava: Llava) -> None:
    rows = write(tmp_path / "in", 12)
    options = {"image_field": "image", "keep_special": True, "max_length": 80}
    store = extracted(plan(tmp_path / "s.zarr", llava, tmp_path / "in", **options))
    compared = 0
    for doc_idx in range(len(store.documents)):
        document = store.document(doc_idx)
        ids, states = alone(llava, rows[document.source.record], tmp_path / "in")
        if len(ids) <= 80:
            compared += 1
            assert document.special.tolist() == [True] + [False] * (len(ids) - 1)
            assert worst(document.activations["resid_post.1"], states[2]) < 1e-5
    assert compared >= 8


def test_bfloat16(tmp_path: Path, llava: Llava) -> None:
    rows = write(tmp_path / "in", 9)
    options = {"image_field": "image", "model_dtype": "bfloat16"}
    store = extracted(plan(tmp_path / "s.zarr", llava, tmp_path / "in", **options))
    for doc_idx in range(9):
        document = store.document(doc_idx)
        _, states = alone(llava, rows[document.source.record], tmp_path / "in")
        assert worst(document.activations["resid_post.0"], states[1][1:]) < 0.1


def test_the_loss_is_that_of_the_next_text_token(tmp_path: Path, llava: Llava) -> None:
    rows = write(tmp_path / "in", 12)
    options = {"image_field": "image", "with_loss": True, "order": "corpus"}
    store = extracted(plan(tmp_path / "s.zarr", llava, tmp_path / "in", **options))
    image_id, stored = llava.model.config.image_token_id, store.rows.columns["loss"][:]
    for doc_idx in range(12):
        document = store.document(doc_idx)
        row = rows[document.source.record]
        ids, states = alone(llava, row, tmp_path / "in")
        with torch.no_grad():
            logits = llava.model.lm_head(torch.from_numpy(states[-1]))
        losses = torch.nn.functional.cross_entropy(
            logits[1:-1], torch.tensor(ids[2:]).long(), reduction="none"
        ).numpy()
        found = stored[document.start : document.start + len(document)]
        known = np.array([token != image_id or "image" not in row for token in ids[2:]], bool)
        assert np.isnan(found[:-1][~known]).all() and np.isnan(found[-1])
        assert np.allclose(found[:-1][known], losses[known], rtol=1e-3, atol=1e-3)


def test_texts_alone_need_no_image_processor(tmp_path: Path) -> None:
    model, processor = save_llava(tmp_path / "model")
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    llava = Llava(model, processor, tmp_path / "model")
    rows = write(tmp_path / "in", 6)
    store = extracted(plan(tmp_path / "s.zarr", llava, tmp_path / "in"))
    assert store.plan.n_documents == 5  # the record without text is none
    tower = load_model(store.plan.model, hookpoints=store.plan.hookpoints).get_submodule(
        "model.vision_tower.encoder.layers"
    )
    assert all(parameter.is_meta for parameter in tower.parameters())  # nothing comes to it
    document = store.document(store.plan.n_documents - 1)
    _, states = alone(llava, {"text": rows[document.source.record]["text"]}, tmp_path)
    assert worst(document.activations["resid_post.1"], states[2][1:]) < 1e-5
    with pytest.raises(ModelError, match="image processor"):
        plan(tmp_path / "t.zarr", llava, tmp_path / "in", image_field="image")
