"""``--prepend-bos``: each window begins with BOS, as SAELens's own batching has it.

The windows are those of SAELens's ``concat_and_batch_sequences``, the rows transformers' own.
"""

from __future__ import annotations

import importlib.util
import json
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support import models
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actlas.jobs.cli.app import cli
from actlas.pipeline.corpus.chat import Chat, ChatTokenizer
from actlas.pipeline.corpus.spans import token_codes
from actlas.pipeline.corpus.tokenization import DocumentTokenizer
from actlas.pipeline.model.files import locate_model
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.image_settings import refuse_other_modality
from actlas.store.errors import EXIT_USAGE, ConfigError
from actlas.store.store import Store, open_store

MAX_LENGTH, BOS, HOOK = 12, 50256, "resid_post.0"
TEXTS = [
    "The cat sat on the mat. " * 6,
    "a",
    "",
    "Text with <|endoftext|> in it is text. " * 3,
    "One two three four five six seven eight nine ten eleven twelve.",
]


@pytest.fixture(scope="module")
def batching() -> ModuleType:
    """SAELens's file alone: its package takes half a minute to import."""
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        pytest.skip("sae-lens is an optional extra: pip install .[saelens]")
    path = Path(spec.origin).with_name("tokenization_and_batching.py")
    alone = importlib.util.spec_from_file_location("saelens_batching", path)
    assert alone is not None and alone.loader is not None
    module = importlib.util.module_from_spec(alone)
    alone.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little GPT-2 with random weights and GPT-2's own tokenizer, which adds no BOS."""
    from transformers import GPT2TokenizerFast

    folder = models.save("gpt2", tmp_path_factory.mktemp("gpt2"), vocab_size=50257)
    files = shared / "data" / "gpt2_tokenizer"
    GPT2TokenizerFast(
        vocab=str(files / "encoder.json"), merges=str(files / "vocab.bpe")
    ).save_pretrained(folder)
    corpus = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "corpus.jsonl").write_text(corpus)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def made(verb: str, model: Path, store: Path, *options: object) -> Result:
    result = run(
        *(verb, store, "--model", model, "--corpus", model / "corpus.jsonl"),
        *("--order", "corpus", "--max-length", MAX_LENGTH, "--hookpoints", HOOK),
        *("--dtype", "float32", *options),
    )
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def with_bos(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("with") / "s.zarr"
    said = made("extract", model, path, "--prepend-bos", "--device", "cpu", "--threads", 1)
    assert "each with BOS first" in said.output
    return open_store(path)


@pytest.mark.slow
def test_rows_and_windows(model: Path, with_bos: Store, batching: ModuleType) -> None:
    store = with_bos
    assert store.plan.tokenizer is not None
    assert store.plan.tokenizer.prefix_ids == (BOS,)
    assert "each begins with BOS, token 50256" in run("info", store.path).output
    tokenizer, reference = (
        AutoTokenizer.from_pretrained(model),
        models.build("gpt2", vocab_size=50257),
    )
    rows = np.full((store.plan.n_tokens, store.plan.model.d_model), np.nan, np.float32)
    for doc_idx, text in enumerate(TEXTS):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        document = store.document(doc_idx)
        assert document.token_id.tolist() == ids  # BOS has no row, and no place among the tokens
        assert "".join(document.tokens) == document.text == text
        windows = batching.concat_and_batch_sequences(
            iter([torch.tensor(ids)] if ids else []), MAX_LENGTH, begin_batch_token_id=BOS
        )
        fed = [window.tolist() for window in windows]
        whole = sum(len(window) - 1 for window in fed)
        fed += [[BOS, *ids[whole:]]] if whole < len(ids) else []
        assert [BOS] * len(fed) == [window[0] for window in fed]
        assert list(chain(*(window[1:] for window in fed))) == ids
        at = int(store.documents.start[doc_idx])
        for window in fed:
            truth = models.oracle(reference, window)[HOOK][1:]
            rows[at : at + len(truth)] = truth
            at += len(truth)
    np.testing.assert_allclose(store.activations[HOOK][:], rows, atol=1e-4 * np.abs(rows).max())
    shown = run("show", store.path, "--doc", 0)
    assert "endoftext" not in shown.output and "|The|" in shown.output


@pytest.mark.slow
def test_it_is_in_the_plan_and_survives_resume(
    model: Path, with_bos: Store, tmp_path: Path
) -> None:
    made("plan", model, tmp_path / "s.zarr")
    without = open_store(tmp_path / "s.zarr")
    assert with_bos.plan.tokenizer is not None and without.plan.tokenizer is not None
    assert with_bos.plan.tokenizer.sha256 != without.plan.tokenizer.sha256
    assert with_bos.plan.request["prepend_bos"] is True
    assert "prepend_bos" not in without.plan.request  # earlier versions read such a plan
    for store, option, code in (
        (with_bos, "--prepend-bos", 0),
        (with_bos, "--no-prepend-bos", EXIT_USAGE),
        (without, "--prepend-bos", EXIT_USAGE),
    ):
        result = run("extract", store.path, option)
        assert result.exit_code == code, result.output
        assert code == 0 or "planned with prepend_bos = " in result.output


@pytest.mark.slow
def test_bos_has_rows_where_special_tokens_have(model: Path, tmp_path: Path) -> None:
    more = ("--keep-special", "--device", "cpu", "--threads", 1)
    made("extract", model, tmp_path / "s.zarr", "--prepend-bos", *more)
    store = open_store(tmp_path / "s.zarr")
    assert store.rows.special is not None
    special, token = store.rows.special[:], store.rows.token_id[:]
    assert special.sum() == store.plan.n_windows
    assert (token[special.astype(bool)] == BOS).all()
    document = store.document(0)
    assert "".join(document.tokens) == TEXTS[0]
    assert document.token_id[::MAX_LENGTH].tolist() == [BOS] * -(
        -len(document.token_id) // MAX_LENGTH
    )


TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("begins", [True, False])
def test_chat_templates_with_and_without_bos(begins: bool) -> None:
    """One BOS, never two; the roles are those of the same characters."""
    tokenizer = AutoTokenizer.from_pretrained(
        locate_model("builtin:actlas-6m", None, code=False).folder
    )
    tokenizer.chat_template = "{{ bos_token }}" * begins + TEMPLATE
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
    formatted = Chat(tokenizer, "t").format(messages)
    assert isinstance(formatted, tuple)
    text, spans = formatted
    coded = np.array([(span.start, span.stop, i) for i, span in enumerate(spans)], np.int32)
    plain, bos = (ChatTokenizer(tokenizer, "t", prepend_bos=flag) for flag in (False, True))
    assert (plain.spec.prefix_ids, bos.spec.prefix_ids) == ((), (tokenizer.bos_token_id,))
    assert plain.spec.sha256 != bos.spec.sha256
    [before], [after] = plain.tokenize([text]), bos.tokenize([text])
    fed = [*bos.spec.prefix_ids, *after.token_id.tolist()]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert fed == [tokenizer.bos_token_id] * (not begins) + list(expected)
    assert [int(after.char_start[0]), after.char_stop] == [0, len(text)]
    assert after.char_start[1:].tolist() == before.char_start[1 + begins :].tolist()
    codes = [token_codes(tokens, coded).tolist() for tokens in (before, after)]
    assert codes[1] == codes[0][begins:]
    [empty] = bos.tokenize([tokenizer.bos_token * begins])
    assert (len(empty), empty.char_stop) == (0, 0)


def test_tokenizers_with_another_prefix_or_no_bos() -> None:
    folder = locate_model("builtin:actlas-6m", None, code=False).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for template, prefix in (("$A", (1,)), ("<|bos|> $A", (1,)), ("<|eos|> $A", (1, 2))):
        special = [("<|bos|>", 1), ("<|eos|>", 2)]
        processor = TemplateProcessing(single=template, special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = processor
        assert DocumentTokenizer(tokenizer, "t", prepend_bos=True).spec.prefix_ids == prefix
    none = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|eos|>"
    )
    with pytest.raises(ConfigError, match=r"has no BOS token.*takes the EOS token") as caught:
        DocumentTokenizer(none, "t", prepend_bos=True)
    assert caught.value.details["field"] == "prepend_bos"


def test_models_of_images_have_no_bos() -> None:
    spec: Any = type("Spec", (), {"modality": "image", "architecture": "ViTModel"})
    options = PlanOptions(model="m", corpus="c", prepend_bos=True)
    with pytest.raises(ConfigError, match="prepend_bos=True is for models that read text"):
        refuse_other_modality(options, spec)
