"""Folders as data sets come in: every file is read, or named as left out. The oracle is the tree
that the test wrote."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from actlas.pipeline.corpus.corpus import open_corpus
from actlas.pipeline.corpus.files import find_files
from actlas.pipeline.corpus.image_folder import ImageFolder
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import CorpusError

LAYOUTS = {
    "C4": ["en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"],
    "Dolma": ["v1_5r2_sample-0000.json.gz", "documents/cc_en_head-0001.json.gz"],
    "RedPajama": ["arxiv/arxiv_023827cd.jsonl", "2023-06/0000/en_head.json.gz"],
    "Pile": ["train/00.jsonl.zst", "val.jsonl.zst", "test.JSONL.ZST"],
    "FineWeb": ["data/CC-MAIN-2013-20/000_00000.parquet", "sample/10BT/000.PARQUET"],
    "others": [
        "a.json",
        "b.json.zst",
        "c.jsonl.bz2",
        "d.jsonl.xz",
        "e.ndjson",
        "f.tsv",
        "g.csv.gz",
    ],
}


def write(path: Path, text: str) -> None:
    """Write a file of one record in the form that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": [text]}), path)
        return
    data = f"text\n{text}\n" if ".csv" in name or ".tsv" in name else json.dumps({"text": text})
    import bz2
    import lzma

    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packers["zst"] = zstandard.ZstdCompressor().compress
    pack = packers.get(name.rsplit(".", 1)[1], bytes)
    path.write_bytes(pack(data.encode()))


def corpus_of(uri: Path | str, **options: Any) -> Any:
    return open_corpus(PlanOptions(model="-", corpus=str(uri), **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_of_a_data_set_is_read(tmp_path: Path, layout: str) -> None:
    for name in LAYOUTS[layout]:
        write(tmp_path / name, name)
    (tmp_path / "README.md").write_text("# about")
    corpus = corpus_of(tmp_path)
    records = list(corpus.records())
    assert sorted(record.text for record in records) == sorted(LAYOUTS[layout])
    assert [record.source for record in records] == [record.text for record in records]
    assert corpus.counts.left_out == ("1 of a kind that is not read: README.md",)
    assert "1 left out)" in corpus.describe()


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "a")
    for name in ("b.docx", "c.warc.gz", "LICENSE", "notes.txt", "x/more.TXT.gz", ".d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for i in range(6):
        (tmp_path / f"{i}.zip").write_text("x")
    write(tmp_path / ".git" / "e.jsonl", "e")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "dataset_infos.json").write_text("{}")
    corpus = corpus_of(tmp_path)
    assert [record.text for record in corpus.records()] == ["a"]
    assert corpus.counts.left_out == (
        "2 .txt next to files of records (a glob reads them): notes.txt, x/more.TXT.gz",
        "1 about the data set: dataset_infos.json",
        "1 folder that was already read by another name: x/up/",
        "2 hidden: .d.jsonl, .git/",
        "2 no regular file (a broken link, a pipe): gone.jsonl, pipe.jsonl",
        "9 of a kind that is not read: 0.zip, 1.zip, 2.zip, 3.zip and 5 more",
    )
    assert corpus.counts.lines() == ["1 file without a record (none.jsonl)"]
    assert corpus.counts.n_read == 1 and "17 left out" in corpus.describe()


def test_a_name_with_control_characters_is_escaped(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "a")
    (tmp_path / "b\x1b[2J.bin").write_text("x")
    corpus = corpus_of(tmp_path)
    list(corpus.records())
    assert corpus.counts.left_out == ("1 of a kind that is not read: b\\x1b[2J.bin",)


def test_a_glob_reads_folders_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for name in LAYOUTS["FineWeb"] + LAYOUTS["Pile"]:
        write(tmp_path / name, name)
    (tmp_path / "val.md").write_text("x")
    corpus = corpus_of(f"{tmp_path}/*a*")
    texts = [record.text for record in corpus.records()]
    assert texts == [*sorted(LAYOUTS["FineWeb"]), "train/00.jsonl.zst", "val.jsonl.zst"]
    assert corpus.counts.left_out == ("1 of a kind that is not read: val.md",)
    assert len(find_files(f"{tmp_path}/**").files) == 5  # each once


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", "a")
    write(tmp_path / "b" / "b.jsonl", "b")
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(CorpusError, match=r"b: Permission denied. Expected a folder"):
        find_files(str(tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_data_sets_that_were_saved(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    texts = [f"text {i}" for i in range(7)]
    rows = Dataset.from_dict({"text": texts, "id": list(range(7))})
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    assert [record.text for record in corpus_of(tmp_path / "one").records()] == texts
    chosen = rows.select([5, 1, 3])  # by a table of indices, which saving resolves
    DatasetDict(train=rows, test=chosen).save_to_disk(tmp_path / "two")
    corpus = corpus_of(tmp_path / "two")
    assert [record.text for record in corpus.records()] == [texts[i] for i in (5, 1, 3)] + texts
    assert {record.source for record in corpus.records()} == {
        "test/data-00000-of-00001.arrow",
        "train/data-00000-of-00001.arrow",
    }
    # What work on a loaded data set leaves beside it is no part of it.
    cache = tmp_path / "one" / "cache-0123456789abcdef.arrow"
    cache.write_bytes((tmp_path / "one" / "data-00000-of-00003.arrow").read_bytes())
    corpus = corpus_of(tmp_path / "one")
    assert [record.text for record in corpus.records()] == texts
    assert corpus.counts.left_out[1:] == (
        "1 beside a saved data set, and not of it: cache-0123456789abcdef.arrow",
    )
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(CorpusError, match=r"'data-00001-of-00003.arrow' is missing"):
        corpus_of(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(CorpusError, match=r"state.json: expected the state of a saved data set"):
        corpus_of(tmp_path / "one")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    write(there / "deep" / "a.jsonl", "a")
    write(root / "b.jsonl", "b")
    (root / "link").symlink_to(there)
    (root / "file.jsonl").symlink_to(there / "deep" / "a.jsonl")
    (there / "up").symlink_to(root)  # round and round
    found = find_files(str(root))
    names = [file.relative_to(root).as_posix() for file in found.files]
    assert names == ["b.jsonl", "file.jsonl", "link/deep/a.jsonl"]
    assert found.left_out.n_files.total() == 1


def test_files_between_images_are_named(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "cats").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cats" / "1.PNG")
    (tmp_path / "cats" / "1.heic").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("x")
    corpus = ImageFolder(PlanOptions(model="-", corpus=str(tmp_path)))
    assert [record.label for record in corpus.records()] == ["cats"]
    assert corpus.counts.left_out == ("2 no image by its name: cats/1.heic, labels.csv",)
