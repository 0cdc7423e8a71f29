"""Images as documents. The oracle is transformers' own ``hidden_states`` of each picture alone."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import worst
from support.vision import SIDE, image_folder, picture, save_vision, states_of

from actlas.pipeline.corpus import image_files as images
from actlas.pipeline.corpus import tokenization
from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.forward.cost import speed
from actlas.pipeline.model.vision import load_processor
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan.dry_run import estimate
from actlas.pipeline.plan.make import make_plan
from actlas.store.errors import ConfigError, CorpusError, HookpointError, ModelError
from actlas.store.format import layout
from actlas.store.store import Store

pytestmark = pytest.mark.slow

GRID = SIDE // 8
N_PATCHES = GRID * GRID
N_SPECIAL = {"vit": (1, 0), "deit": (2, 0), "yolos": (1, 5), "dinov2_registers": (5, 0)}
N_SPECIAL |= {"clip_vision": (1, 0), "clip": (1, 0), "siglip": (0, 0)}


def blocks_of(kind: str) -> dict[str, int]:
    """The hookpoints of both blocks, with their places in transformers' hidden states.

    YOLOS adds embeddings of positions between two blocks, so its blocks have module paths alone.
    """
    stem = "encoder.layer" if kind == "yolos" else "resid_post"
    return {f"{stem}.{i}": i + 1 for i in range(2)}


@pytest.fixture(autouse=True)
def _no_timing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time a forward pass only where a test is about it."""
    if "speed" not in request.node.name:
        monkeypatch.setattr(
            "actlas.pipeline.plan.estimate.forward_speed",
            lambda *_, **__: speed.Speed(None, "not here"),
        )


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("models") / "vit"
    return save_vision("vit", folder), folder


def plan(path: Path, model: Path, corpus: Path, **options: Any) -> Store:
    given = {"dtype": "float32", "shard_rows": 64, **options}
    return make_plan(path, PlanOptions(model=str(model), corpus=str(corpus), **given))


def extracted(store: Store, tokens_per_batch: int = 200) -> Store:
    run = RunOptions(device="cpu", tokens_per_batch=tokens_per_batch)
    extractor = Extractor(store, run)
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    return store


def check_rows(store: Store, model: Any, folder: Path, names: dict[str, int]) -> None:
    """Every row is the one that transformers gives for its picture alone, at its place."""
    n_prefix, n_suffix = store.plan.processor.n_prefix, store.plan.processor.n_suffix
    processor = load_processor(Path(store.plan.model.id))
    for doc_idx in range(len(store.documents)):
        document = store.document(doc_idx)
        states = states_of(model, processor, folder / document.source.name)
        for name, place in names.items():
            state = states[place]
            kept = state if store.plan.keep_special else state[n_prefix : len(state) - n_suffix]
            assert worst(document.activations[name], kept) < 1e-5, (doc_idx, name)


@pytest.mark.parametrize("order", ["corpus", "shuffled"])
@pytest.mark.parametrize("kind", list(N_SPECIAL))
def test_every_row_is_transformers_own(tmp_path: Path, kind: str, order: str) -> None:
    model = save_vision(kind, tmp_path / "model")
    image_folder(tmp_path / "in", 4)
    names = blocks_of(kind)
    store = plan(
        tmp_path / "s.zarr",
        tmp_path / "model",
        tmp_path / "in",
        order=order,
        hookpoints=tuple(names),
    )
    extracted(store, tokens_per_batch=70 if order == "corpus" else 1000)
    got = store.plan
    assert got.processor is not None and got.tokenizer is None
    assert (got.processor.n_prefix, got.processor.n_suffix) == N_SPECIAL[kind]
    assert got.processor.grid == (GRID, GRID) and got.model.modality == "image"
    assert got.windows.max_length == N_PATCHES + sum(N_SPECIAL[kind])
    assert (got.n_documents, got.n_tokens) == (8, 8 * N_PATCHES)
    assert got.n_shards == 4 and got.shard_rows % N_PATCHES  # borders fall inside images
    check_rows(store, model, tmp_path / "in", names)


def test_row_columns_say_which_patch_of_which_image(tmp_path: Path, vit: tuple[Any, Path]) -> None:
    image_folder(tmp_path / "in", 5)
    store = extracted(plan(tmp_path / "s.zarr", vit[1], tmp_path / "in", order="shuffled"))
    t = np.concatenate(
        [
            layout.shard_tokens("shuffled", 0, *store.shard_range(shard))
            for shard in range(store.plan.n_shards)
        ]
    )
    assert (store.rows.token_id[:] == -1).all()
    assert (store.rows.doc_idx[:] == t // N_PATCHES).all()
    assert (store.rows.pos_idx[:] == t % N_PATCHES).all()
    document = store.document(3)
    assert document.tokens[0] == "[0,0] " and document.tokens[GRID] == "[1,0] "
    assert document.tokens[-1] == f"[{GRID - 1},{GRID - 1}]"
    assert "".join(document.tokens) == document.text
    around = store.context(3, GRID + 1, words=1)
    assert str(around) == "[1,0] [[1,1] ][1,2]"
    labels = [store.document(i).label for i in range(10)]
    sources = [store.document(i).source.name for i in range(10)]
    assert labels == [source.split("/")[0] for source in sources]
    assert sorted(sources) == sorted(
        path.relative_to(tmp_path / "in").as_posix() for path in (tmp_path / "in").rglob("*.png")
    )


def test_special_positions_get_rows_where_asked_for(tmp_path: Path) -> None:
    model = save_vision("yolos", tmp_path / "model")
    image_folder(tmp_path / "in", 3)
    names = blocks_of("yolos")
    store = plan(
        tmp_path / "s.zarr",
        tmp_path / "model",
        tmp_path / "in",
        keep_special=True,
        shard_rows=64,
        hookpoints=tuple(names),
    )
    extracted(store)
    check_rows(store, model, tmp_path / "in", names)
    special = store.document(2).special
    assert special.tolist() == [True] + [False] * N_PATCHES + [True] * 5
    assert store.document(2).tokens[:3] == ["", "[0,0] ", "[0,1] "]
    rows = store.rows
    assert rows.special is not None
    place = rows.pos_idx[:]
    assert (rows.special[:] == ((place == 0) | (place > N_PATCHES))).all()


def test_a_network_of_convolutions_by_module_path(tmp_path: Path) -> None:
    model = save_vision("resnet", tmp_path / "model")
    image_folder(tmp_path / "in", 6)
    store = plan(
        tmp_path / "s.zarr",
        tmp_path / "model",
        tmp_path / "in",
        hookpoints=("encoder.stages.0.layers.0", "encoder.stages.0"),
        shard_rows=64,
    )
    extracted(store, tokens_per_batch=1)
    first = store.plan.hookpoints[0]
    assert (first.width, first.layout) == (8, "feature_map")
    assert store.plan.processor is not None and store.plan.processor.grid == (10, 10)
    processor = load_processor(tmp_path / "model")
    for doc_idx in range(6):
        document = store.document(doc_idx)
        state = states_of(model, processor, tmp_path / "in" / document.source.name)[1]
        rows = document.activations[store.plan.hookpoints[-1].name]
        for r in range(10):
            for c in range(10):
                assert worst(rows[10 * r + c], state[:, r, c]) < 1e-5
                assert document.tokens[10 * r + c].strip() == f"[{r},{c}]"


def test_hookpoints_with_other_positions_are_refused(tmp_path: Path) -> None:
    save_vision("resnet", tmp_path / "model")
    image_folder(tmp_path / "in", 1)
    with pytest.raises(HookpointError, match=r"stages\.0 [0-9,]+, encoder\.stages\.1 [0-9,]+"):
        plan(
            tmp_path / "s.zarr",
            tmp_path / "model",
            tmp_path / "in",
            hookpoints=("encoder.stages.0", "encoder.stages.1"),
        )


@pytest.mark.parametrize("kind", ["resnet", "vit", "clip_vision"])
def test_a_model_that_computes_in_bfloat16(tmp_path: Path, kind: str) -> None:
    model = save_vision(kind, tmp_path / "model").to(torch.bfloat16)
    image_folder(tmp_path / "in", 3)
    names = ("encoder.stages.1",) if kind == "resnet" else ("resid_post.0",)
    store = plan(
        tmp_path / "s.zarr",
        tmp_path / "model",
        tmp_path / "in",
        hookpoints=names,
        model_dtype="bfloat16",
        dtype="bfloat16",
    )
    extracted(store)
    processor = load_processor(tmp_path / "model")
    document = store.document(4)
    with Image.open(tmp_path / "in" / document.source.name) as image:
        inputs = processor(images=[image.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        states = model(
            inputs["pixel_values"].to(torch.bfloat16), output_hidden_states=True
        ).hidden_states
    truth = states[2][0].flatten(1).T if kind == "resnet" else states[1][0, 1:]
    found = document.activations[names[0]]
    assert found.dtype.name == "bfloat16"
    assert worst(found, truth.float().numpy()) < 0.05


def test_the_store_holds_the_files_and_workers_read_nothing_else(
    tmp_path: Path, vit: tuple[Any, Path]
) -> None:
    image_folder(tmp_path / "in", 4)
    shutil.copytree(tmp_path / "in", tmp_path / "kept")
    store = plan(tmp_path / "s.zarr", vit[1], tmp_path / "in", order="shuffled", seed=3)
    shutil.rmtree(tmp_path / "in")
    extracted(store)
    check_rows(store, vit[0], tmp_path / "kept", {"resid_post.0": 1})
    files = []
    for doc_idx in range(8):
        files.append((tmp_path / "kept" / store.document(doc_idx).source.name).read_bytes())
        assert store.documents.image(doc_idx) == files[-1]
    assert [i for i in range(8) if store.documents.image(i) != files[i]] == []
    assert store.plan.n_image_bytes == sum(map(len, files))
    texts = [store.documents.text(i).encode() for i in range(8)]
    digest = hashlib.sha256(struct.pack("<q", 8))
    for items in (texts, files):
        digest.update(b"".join(struct.pack("<q", len(item)) for item in items))
        digest.update(b"".join(items))
    assert store.plan.corpus.fingerprint == digest.hexdigest()


def encoded(pixels: Any, form: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, form, **more)
    return file.getvalue()


def test_what_is_no_picture_is_skipped_and_counted(
    tmp_path: Path, vit: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    (folder / "a" / ".hidden").mkdir(parents=True)
    good = encoded(picture(rng), "PNG")
    frames = [Image.fromarray(picture(rng)) for _ in range(3)]
    jpeg = encoded(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "JPEG")
    files = {
        "a/good.png": good,
        "a/.hidden/good.png": good,
        "a/.good.png": good,
        "a/notes.txt": b"no picture",
        "a/text.png": b"hello",
        "a/empty.jpg": b"",
        "a/cut.png": good[: len(good) // 2],
        "a/cut.jpg": jpeg[: len(jpeg) // 2],
        "a/film.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "a/deep.png": encoded(rng.integers(0, 1 << 16, (30, 30)).astype(np.uint16), "PNG"),
        "a/drawing.png": encoded(Image.new("RGB", (9, 9)), "EPS"),
        "a/wide.png": encoded(Image.new("1", (300, 200)), "PNG"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    lines: list[str] = []
    store = make_plan(
        tmp_path / "s.zarr", PlanOptions(model=str(vit[1]), corpus=str(folder)), lines.append
    )
    assert [store.document(i).source.name for i in range(len(store.documents))] == ["a/good.png"]
    assert (store.plan.corpus.n_records_read, store.plan.corpus.n_records_skipped) == (9, 8)
    said = "\n".join(line for line in lines if line.startswith("skipped"))
    for reason in (
        "3 records skipped: not an image, or of a format that is not read",
        "2 records skipped: a damaged image",
        "1 record skipped: an image of several frames",
        "1 record skipped: an image of mode I;16",
        "1 record skipped: an image of more than 10,000 pixels",
    ):
        assert reason in said, (reason, said)


def test_pictures_of_every_kind_are_read_as_pillow_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = Image.fromarray(picture(rng))
    for form, mode in (
        ("PNG", "RGBA"),
        ("PNG", "L"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "LA"),
        ("JPEG", "CMYK"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "RGB"),
        ("BMP", "RGB"),
    ):
        data = encoded(base.convert(mode), form)
        found = images.decode_image(data)
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB"))), (form, mode)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    found = images.decode_image(encoded(base, "PNG", exif=turned))
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(base), -1))


def test_a_flat_folder_a_glob_and_one_file_have_no_labels(
    tmp_path: Path, vit: tuple[Any, Path]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.JPG", "c.webp"):
        form = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.split(".")[1].lower()]
        (tmp_path / "in" / name).write_bytes(encoded(picture(rng), form))
    for number, (corpus, names) in enumerate(
        {"in": ["a.JPG", "b.png", "c.webp"], "in/*.png": ["b.png"], "in/a.JPG": ["a.JPG"]}.items()
    ):
        store = plan(tmp_path / f"{number}.zarr", vit[1], tmp_path / corpus, order="corpus")
        assert [store.document(i).source.name for i in range(len(store.documents))] == names
        assert store.documents.label_codes is None
        assert store.plan.order == "corpus"


def test_records_name_or_hold_their_images(tmp_path: Path, vit: tuple[Any, Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_folder(tmp_path / "in", 2)
    (tmp_path / "outside.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    rows = [
        {"picture": "red/000.png", "meta": {"kind": "warm"}},
        {"picture": "blue/../blue/001.png", "meta": {"kind": "cold"}},
        {"picture": "../outside.png"},
        {"picture": str(tmp_path / "outside.png")},
        {"picture": "link.png"},
        {"picture": "red/009.png"},
        {"picture": 7},
        {"picture": None},
        {"other": "x"},
    ]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines: list[str] = []
    options = PlanOptions(
        model=str(vit[1]),
        corpus=str(tmp_path / "in" / "a.jsonl"),
        image_field="picture",
        label_field="meta.kind",
        dtype="float32",
    )
    store = extracted(make_plan(tmp_path / "s.zarr", options, lines.append))
    found = [store.document(i) for i in range(len(store.documents))]
    assert [(d.source.record, d.label) for d in found] == [(0, "warm"), (1, "cold")]
    truth = states_of(vit[0], load_processor(vit[1]), tmp_path / "in/blue/001.png")
    assert worst(found[1].activations["resid_post.0"], truth[1][1:]) < 1e-5
    said = "\n".join(lines)
    for reason in (
        "3 records skipped: an image outside the folder of its records",
        "1 record skipped: no such image file",
        "1 record skipped: an image that is neither bytes nor a path",
        "2 records skipped: no image",
    ):
        assert reason in said, (reason, said)
    data = [
        (tmp_path / "in/red/000.png").read_bytes(),
        b"",
        (tmp_path / "outside.png").read_bytes(),
    ]
    pq.write_table(
        pa.table({"raw": data, "hub": [{"bytes": d, "path": "x.png"} for d in data]}),
        tmp_path / "b.parquet",
    )
    for field in ("raw", "hub.bytes", "hub"):
        store = plan(tmp_path / f"{field}.zarr", vit[1], tmp_path / "b.parquet", image_field=field)
        kept = {store.document(i).source.record: store.documents.image(i) for i in range(2)}
        assert kept == {0: data[0], 2: data[2]}


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer": "builtin:actlas-6m"},
        {"text_field": "text"},
        {"max_length": 4},
        {"long": "window"},
        {"lowercase": True},
        {"label_field": "label"},
    ],
)
def test_what_says_nothing_of_images_is_refused(
    tmp_path: Path, vit: tuple[Any, Path], options: dict[str, Any]
) -> None:
    image_folder(tmp_path / "in", 1)
    name = next(iter(options))
    with pytest.raises(ConfigError, match=f"^{name}\\b"):
        plan(tmp_path / "s.zarr", vit[1], tmp_path / "in", **options)
    assert not (tmp_path / "s.zarr").exists()


def test_a_corpus_without_images_is_refused(tmp_path: Path, vit: tuple[Any, Path]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(CorpusError, match="no images here"):
        plan(tmp_path / "s.zarr", vit[1], tmp_path / "in")
    with pytest.raises(CorpusError, match="none of 1 record is a document"):
        plan(tmp_path / "s.zarr", vit[1], tmp_path / "in", image_field="picture")
    (tmp_path / "in/a.png").write_bytes(b"broken")
    with pytest.raises(CorpusError, match="none of 1 file is an image"):
        plan(tmp_path / "s.zarr", vit[1], tmp_path / "in")


def test_max_tokens_and_an_estimate(
    tmp_path: Path, vit: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "BATCH_TEXTS", 2)
    image_folder(tmp_path / "in", 10)
    limit = 3 * N_PATCHES - 1
    sampled = plan(tmp_path / "a.zarr", vit[1], tmp_path / "in", order="shuffled", max_tokens=limit)
    assert sampled.plan.n_documents == 3 and sampled.plan.corpus.sample == "uniform"
    assert sampled.plan.corpus.n_records_read == 4  # and not all 20
    seen = set()
    for seed in range(12):
        store = plan(
            tmp_path / f"{seed}.zarr",
            vit[1],
            tmp_path / "in",
            order="shuffled",
            max_tokens=limit,
            seed=seed,
        )
        seen |= {store.document(i).source.name for i in range(3)}
    assert len(seen) > 12
    head = plan(tmp_path / "b.zarr", vit[1], tmp_path / "in", max_tokens=limit)
    assert [head.document(i).source.name for i in range(3)] == [
        f"blue/{i:03}.png" for i in range(3)
    ]
    whole = plan(tmp_path / "c.zarr", vit[1], tmp_path / "in").plan
    options = PlanOptions(
        model=str(vit[1]), corpus=str(tmp_path / "in"), dtype="float32", shard_rows=64
    )
    found = estimate(options)
    assert (found.plan.n_tokens, found.plan.n_documents) == (whole.n_tokens, whole.n_documents)
    assert found.sampled_documents is None
    assert found.stored.raw_bytes_of("documents") > whole.n_image_bytes


def test_the_speed_of_images_is_measured(tmp_path: Path, vit: tuple[Any, Path]) -> None:
    image_folder(tmp_path / "in", 1)
    found = estimate(PlanOptions(model=str(vit[1]), corpus=str(tmp_path / "in")))
    assert found.seconds is not None and 0 < found.seconds[0] <= found.seconds[1]


def test_a_processor_of_another_model_is_refused(tmp_path: Path) -> None:
    import transformers as t

    save_vision("vit", tmp_path / "model")
    image_folder(tmp_path / "in", 1)
    made: dict[str, dict[str, Any]] = {
        r"cannot read the output of its image processor: .* \(48\*48\)": {
            "size": {"height": 48, "width": 48}
        },
        "gives images of different shapes different inputs": {
            "size": {"shortest_edge": SIDE},
            "do_center_crop": False,
        },
    }
    for message, options in made.items():
        processor: Any = t.CLIPImageProcessorPil(**{"do_center_crop": False, **options})  # type: ignore[no-untyped-call]
        processor.save_pretrained(tmp_path / "model")
        with pytest.raises(ModelError, match=message):
            plan(tmp_path / "s.zarr", tmp_path / "model", tmp_path / "in")
    (tmp_path / "model/preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="The image processor of"):
        plan(tmp_path / "s.zarr", tmp_path / "model", tmp_path / "in")


def test_patch_embeddings_alone_are_a_store_too(tmp_path: Path, vit: tuple[Any, Path]) -> None:
    image_folder(tmp_path / "in", 2)
    store = extracted(plan(tmp_path / "s.zarr", vit[1], tmp_path / "in", hookpoints=("embed",)))
    assert store.plan.windows.max_length == N_PATCHES
    document = store.document(1)
    processor = load_processor(vit[1])
    with Image.open(tmp_path / "in" / document.source.name) as image:
        inputs = processor(images=[image.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        truth = vit[0].embeddings.patch_embeddings(inputs["pixel_values"])[0].numpy()
    assert worst(document.activations["embed"], truth) < 1e-5


def test_a_network_whose_configuration_names_no_sizes(tmp_path: Path) -> None:
    model = save_vision("mobilenet", tmp_path / "model")
    image_folder(tmp_path / "in", 2)
    options = {"hookpoints": ("layer.3",)}
    store = extracted(plan(tmp_path / "s.zarr", tmp_path / "model", tmp_path / "in", **options))
    processor = load_processor(tmp_path / "model")
    document = store.document(2)
    truth = states_of(model, processor, tmp_path / "in" / document.source.name)[3]
    assert truth.shape == (32, 5, 5)
    assert worst(document.activations["layer.3"], truth.reshape(32, 25).T) < 1e-5


def test_sixteen_bits_a_channel_are_not_cut_to_eight(tmp_path: Path) -> None:
    """Pillow calls such files RGB, and drops half of what they hold."""
    rows = b"".join(b"\0" + b"\x12\x34" * 3 * 4 for _ in range(4))

    def chunk(kind: bytes, body: bytes) -> bytes:
        end = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + end

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    deep = {
        "png": png,
        "ppm": b"P6 4 4 65535\n" + b"\x12\x34" * 3 * 16,
        "plain ppm": b"P3 1 1 1000\n 1 2 999\n",
    }
    for name, data in deep.items():
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "RGB", name
        with pytest.raises(images.ImageError, match="more than 8 bits a channel"):
            images.decode_image(data)
    for data in (b"P6 4 4 255\n" + b"\x12" * 48, encoded(np.zeros((4, 4, 3), np.uint8), "TIFF")):
        assert images.decode_image(data).size == (4, 4)
