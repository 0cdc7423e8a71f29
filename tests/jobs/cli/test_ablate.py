"""``actlas ablate`` as a user runs it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from click.testing import CliRunner, Result
from support.masks import mask_for
from support.models import build, save
from support.reports import parsed
from transformers import AutoModelForCausalLM, AutoTokenizer

import actlas
from actlas.analysis.localizer.masks import Mask
from actlas.jobs.cli.app import cli
from actlas.jobs.run.ablate import read_windows
from actlas.pipeline.builtin import builtin_model_path
from actlas.pipeline.model.device import torch_threads
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.settings import resolve_settings
from actlas.store.errors import EXIT_DONE, EXIT_USAGE, StoreExistsError

UNITS = {"resid_post.1": (3, 77), "resid_post.4": (0, 1, 255)}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask")
    mask_for(builtin_model_path("actlas-6m"), UNITS).save(folder / "mask.json")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    texts = ["The assert statement is a convenient way to insert assertions.", "", "A list."]
    path.write_text("\n".join(json.dumps({"text": each, "body": "x y z"}) for each in texts * 3))
    return path


SMALL = ("--random", 2, "--new-tokens", 4, "--device", "cpu", "--threads", 1)


@pytest.mark.slow
def test_from_a_mask_to_a_table_and_a_picture(mask: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("ablate", "builtin:actlas-6m", "--mask", mask, "--corpus", text, "--out", out, *SMALL)
    result = call(*asked)
    assert result.exit_code == EXIT_DONE, result.output
    assert {path.name for path in out.iterdir()} == {
        "ablation.csv",
        "ablation.png",
        "samples.txt",
        "summary.json",
    }
    rows = list(csv.DictReader((out / "ablation.csv").read_text().splitlines()))
    assert [row["condition"] for row in rows] == ["intact", "top", "random", "random"]
    assert [row["n_units"] for row in rows] == ["0", "5", "5", "5"]
    assert [row["seed"] for row in rows] == ["", "", "0", "1"]
    assert rows[0]["loss_delta"] == "0.0" and float(rows[1]["loss_delta"]) != 0
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    samples = (out / "samples.txt").read_text()
    assert samples.count("=== prompt") == 3 and samples.count("--- top") == 3
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sentence"] in result.stdout
    assert summary["units"] == {name: list(units) for name, units in UNITS.items()}
    again = call(*asked)
    assert again.exit_code == EXIT_USAGE and "--overwrite" in again.stderr
    as_json = parsed("ablate", call(*asked, "--overwrite", "--json").stdout)
    assert [row["loss"] for row in as_json["conditions"]] == [float(row["loss"]) for row in rows]


def test_the_intact_loss_is_transformers_own(mask: Path, text: Path, tmp_path: Path) -> None:
    folder = str(builtin_model_path("actlas-6m"))
    more = {"device": "cpu", "threads": 1, "max_length": 8, "model_dtype": "bfloat16"}
    found = actlas.ablate(folder, mask, str(text), random=1, new_tokens=2, **more)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    total, n = 0.0, 0
    for line in text.read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        for at in range(0, len(ids), 7):  # BOS and seven tokens
            row = torch.tensor([[tokenizer.bos_token_id, *ids[at : at + 7]]])
            with torch.no_grad():
                scores = model(row).logits[0, :-1].float().log_softmax(-1)
            total -= float(scores.gather(1, row[0, 1:, None]).double().sum())
            n += row.shape[1] - 1
    intact = found.conditions[0]
    assert intact.n_tokens == n
    assert intact.loss == pytest.approx(total / n, rel=2e-3), "bfloat16, other batches"
    assert "ablation" in repr(found) and len(found.table) == 3


@pytest.mark.slow
def test_an_empty_mask_costs_nothing(text: Path) -> None:
    folder = builtin_model_path("actlas-6m")
    found = actlas.ablate(
        str(folder), mask_for(folder, {}), str(text), random=1, new_tokens=0, device="cpu"
    )
    assert [c.loss_delta for c in found.conditions] == [0.0, 0.0, 0.0]
    assert "do no more than 0 random ones" in found.sentence()


def test_prompts_are_the_users(mask: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(
        *("ablate", "builtin:actlas-6m", "--mask", mask, "--corpus", text, "--out", out, *SMALL),
        *("--prompt", "The return value is", "--prompt", "<b>\x1b[31m"),
        *("--temperature", 0.8, "--seed", 4, "--text-field", "body", "--lowercase"),
    )
    assert result.exit_code == EXIT_DONE, result.output
    assert "\x1b" not in result.stdout
    samples = (out / "samples.txt").read_text()
    assert "=== prompt 1: The return value is" in samples
    assert "=== prompt 2: <b>\\x1b[31m\n" in samples and "\x1b" not in samples
    # One random draw is there to read, the others are in the table.
    assert "--- random, seed 4" in samples and "--- random, seed 5" not in samples
    assert "random, seed 5" in result.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--mask": "none.json"}, "no such mask"),
        ({"--corpus": "none.jsonl"}, "none.jsonl"),
        ({"--corpus": "{empty}"}, "no document of it has a token to predict"),
        ({"--max-length": 1}, "leaves no room"),
        ({"--max-length": 5000}, "are longer than 512"),
        ({"--temperature": -1}, "--temperature -1.0: expected 0 or more"),
        ({"--temperature": "nan"}, "--temperature nan: expected 0 or more"),
        ({"--max-tokens": 0}, "--max-tokens 0: expected 1 or more"),
        ({"--prompt": ""}, "has 0 tokens, expected 1 to 471"),
        ({"--prompt": "word " * 600}, "expected 1 to 471: builtin:actlas-6m has a context of 512"),
        ({"--new-tokens": 512}, "has a context of 512 tokens, and a prompt needs room"),
        ({"--device": "cuda:99"}, "cuda"),
        ({"--text-field": "other"}, "other"),
    ],
)
def test_bad_input_gets_one_line(
    mask: Path, text: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    asked: dict[str, Any] = {"--mask": mask, "--corpus": text, "--out": tmp_path / "out"}
    asked |= changes
    pairs = [str(v).replace("{empty}", str(empty)) for pair in asked.items() for v in pair]
    result = call("ablate", "builtin:actlas-6m", *pairs)
    assert result.exit_code == EXIT_USAGE, result.output
    assert message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_model_is_refused(mask: Path, text: Path, tmp_path: Path) -> None:
    other = save("llama", tmp_path / "other")
    AutoTokenizer.from_pretrained(str(builtin_model_path("actlas-6m"))).save_pretrained(other)
    out = tmp_path / "out"
    result = call("ablate", other, "--mask", mask, "--corpus", text, "--out", out)
    assert result.exit_code == EXIT_USAGE and len(result.stderr.splitlines()) == 1
    assert "made for another model: weights_sha256" in result.stderr
    body = call("ablate", other, "--mask", mask, "--corpus", text, "--out", out, "--json").stdout
    assert json.loads(body)["error"]["kind"] == "mask"
    assert not out.exists()
    assert Mask.load(mask).n_units == 5


def test_a_model_without_a_head_is_refused_before_its_weights_are_read(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("actlas.pipeline.forward.load.load_model", never)
    build("llama").model.save_pretrained(tmp_path / "headless")
    for name, folder in (("llama", tmp_path / "headless"), ("bert", tmp_path / "bert")):
        if name == "bert":
            save(name, folder)
        AutoTokenizer.from_pretrained(str(builtin_model_path("actlas-6m"))).save_pretrained(folder)
        mask_for(folder, {"resid_post.1": (3,)}).save(tmp_path / "mask.json")
        result = call(
            *("ablate", folder, "--mask", tmp_path / "mask.json", "--corpus", text),
            *("--out", tmp_path / "out"),
        )
        assert result.exit_code == EXIT_USAGE and len(result.stderr.splitlines()) == 1
        assert "predicts no next token" in result.stderr, result.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("max_tokens", [1, 5, 13, 14, 1000])
@pytest.mark.parametrize("long", ["window", "truncate"])
def test_windows_are_the_first_tokens_in_pieces(
    text: Path, max_tokens: int, long: Literal["window", "truncate"]
) -> None:
    asked = PlanOptions(model="builtin:actlas-6m", corpus=str(text), max_length=8, long=long)
    windows, texts = read_windows(resolve_settings(asked), max_tokens)
    tokenizer = AutoTokenizer.from_pretrained(str(builtin_model_path("actlas-6m")))
    expected: list[tuple[int, list[int]]] = []
    left = max_tokens
    for document, line in enumerate(text.read_text().splitlines()):
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        ids = (ids if long == "window" else ids[:7])[:left]
        left -= len(ids)
        expected += [
            (document, [tokenizer.bos_token_id, *ids[at : at + 7]]) for at in range(0, len(ids), 7)
        ]
    assert [(window.document, window.ids.tolist()) for window in windows] == expected
    assert {(window.start, window.stop - len(window.ids)) for window in windows} == {(1, 0)}
    assert len(texts) > windows[-1].document


def test_threads_are_given_back(mask: Path, text: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(StoreExistsError):
        actlas.ablate("builtin:actlas-6m", mask, str(text), out=text.parent, threads=3)
    seen: list[int] = []
    with torch_threads(before + 1):
        seen.append(torch.get_num_threads())
    assert seen == [before + 1] and torch.get_num_threads() == before
