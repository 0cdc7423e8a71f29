"""What actlas ships: the model, the corpora and the stimuli."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from actlas.pipeline.builtin import builtin_model_path, corpora
from actlas.pipeline.builtin.corpora import BUILTIN_CORPORA, LABELLED, BuiltinRecord, python_docs
from actlas.pipeline.builtin.docstrings import docstrings, module_files
from actlas.pipeline.builtin.nonwords import LetterModel, nonword_strings, read_lines
from actlas.pipeline.builtin.splitmix import SplitMix64

pytestmark = pytest.mark.slow

MODEL = builtin_model_path("actlas-6m")


def words_of(texts: list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


@pytest.fixture(scope="module")
def docs() -> list[BuiltinRecord]:
    return list(BUILTIN_CORPORA["python-docs"]())


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return loaded.eval()


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="actlas-6m"):
        builtin_model_path("actlas-7b")


def test_importing_the_corpora_loads_no_torch():
    code = "import sys, actlas.pipeline.builtin.corpora; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the model


def test_the_model_is_a_small_causal_lm_that_loads_without_warnings(tokenizer, model):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = transformers.AutoModelForCausalLM.from_pretrained(MODEL)
    assert isinstance(again, transformers.LlamaForCausalLM)
    assert again.dtype == torch.bfloat16
    assert (MODEL / "model.safetensors").stat().st_size <= 12_000_000
    assert model.config.vocab_size == len(tokenizer) == 4_096
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 512


def test_the_model_has_learnt_english(tokenizer, model):
    text = (
        "The government of the United States was established by the people, and the President "
        "is elected every four years. In the early part of the century, the city was small."
    )
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        right = model(input_ids=tokens, labels=tokens).loss.item()
        backwards = torch.cat((tokens[:, :1], tokens[:, 1:].flip(1)), dim=1)
        wrong = model(input_ids=backwards, labels=backwards).loss.item()
    assert right < 0.6 * math.log(4_096)
    assert right < wrong - 1.0


def test_the_training_forward_is_transformers_own(model):
    from actlas_6m.llama import dropout_masks, next_token_loss, rotary_tables

    tokens = torch.randint(4, 4_096, (2, 40), generator=torch.Generator().manual_seed(0))
    tokens[0, 7] = 3
    labels = tokens.masked_fill(tokens == 3, -100)
    rotary = rotary_tables(512, 64, 10_000.0)
    masks = dropout_masks((12, 2, 256), 0.0, torch.Generator())
    with torch.inference_mode():
        expected = model(input_ids=tokens, labels=labels).loss.item()
        got = next_token_loss(model, tokens, masks, rotary, dtype=torch.float32).item()
    assert got == pytest.approx(expected, rel=1e-5)


def test_muon_updates_are_nearly_orthogonal():
    from actlas_6m.optim import Muon, orthogonalize

    matrices = torch.randn(2, 48, 20, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.zeros(3)])


def test_attention_is_causal(tokenizer, model):
    tokens = tokenizer("The old farmer walked slowly across the field", return_tensors="pt")
    ids = tokens["input_ids"]
    changed = ids.clone()
    changed[0, -1] = 100
    with torch.inference_mode():
        a, b = model(input_ids=ids).logits, model(input_ids=changed).logits
    assert torch.allclose(a[:, :-1], b[:, :-1], atol=1e-5)


def test_one_sentence_prefers_good_grammar(tokenizer, model):
    from actlas_6m.evaluate import sentence_log_probabilities

    pairs = [
        ("The men were born in the city.", "The men was born in the city."),
        ("He has been the president.", "He have been the president."),
        ("They are in the house.", "They is in the house."),
    ]
    for good, bad in pairs:
        likely, unlikely = sentence_log_probabilities(model, tokenizer, [good, bad])
        assert likely > unlikely, (good, bad)


@pytest.mark.parametrize(
    "text",
    [
        "Plain English, 1234 + 5.",
        "Füße, naïve",
        "日本語とрусский",
        "tabs\tand\n\n  lines ",
        "🙂👩‍🔬",
    ],
)
def test_the_tokenizer_round_trips_and_adds_bos(tokenizer, text):
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    offsets = encoded["offset_mapping"]
    assert offsets[0] == (0, 0)
    assert offsets[-1][1] == len(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]


def test_special_strings_can_be_read_as_text(tokenizer):
    text = "a <|bos|> b <|missing|>"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_the_card_and_the_curve_are_there():
    card = (MODEL / "MODEL_CARD.md").read_text(encoding="utf-8")
    for part in ("BLiMP", "bits per byte", "CC BY-SA", "ODC-BY", "public domain", "Limits"):
        assert part in card
    assert (MODEL / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (MODEL / "loss.csv").read_text().startswith("step,tokens,")


# --- the training text


def test_pieces_join_to_their_document():
    from actlas_6m.data import detokenize, pieces, wikitext_articles

    document = 'One. "Two" is it. 3.5 three.\n\nFour! (Five.) six'
    assert "".join(pieces(document)) == document
    assert len(pieces(document)) > 4
    assert detokenize('a @-@ b , " c " <unk> \'s .') == 'a-b, "c" <|missing|>\'s.'
    text = " = A = \n\n One . \n = = B = = \n Two . \n = C = \n"
    assert list(wikitext_articles(text)) == ["A\nOne.\nB\nTwo.", "C"]


def test_the_schedule_rises_holds_and_falls():
    from actlas_6m.optim import Schedule

    schedule = Schedule(n_warmup=4, decay_start=10, n_decay=5)
    factors = [schedule.factor(step) for step in range(schedule.n_steps + 1)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:11] == [1.0] * 7
    assert factors[-1] == 0.0
    assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)


# --- the corpora


def test_python_docs_are_many_distinct_and_deterministic(docs):
    assert sum(len(record.text) for record in docs) > 1_000_000
    assert min(len(record.text) for record in docs) >= 80
    assert len({record.text for record in docs}) == len(docs)
    assert {record.label for record in docs} == {None}
    assert any(record.name == "json.dumps" for record in docs)
    assert not any(".test." in f".{record.name}" for record in docs)
    again = itertools.islice(BUILTIN_CORPORA["python-docs"](), 500)
    assert list(again) == docs[:500]


def test_python_docs_come_lazily(monkeypatch: pytest.MonkeyPatch):
    parsed: list[str] = []
    real = corpora.docstrings
    monkeypatch.setattr(
        corpora, "docstrings", lambda data, module: (parsed.append(module), real(data, module))[1]
    )
    records = BUILTIN_CORPORA["python-docs"]()
    assert next(records).name.startswith("topic ") and parsed == []
    first = next(record for record in records if not record.name.startswith("topic "))
    assert first.name.startswith(parsed[-1]) and len(parsed) < 5


def test_short_docstrings_share_a_record(tmp_path: Path):
    source = 'def f():\n    "Short one of f, which says little."\n'
    source += 'class C:\n    "Short one of C, which says little as well."\n'
    source += f'    def g():\n        """{"Long enough. " * 10}"""\n'
    (tmp_path / "m.py").write_text(source)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_m.py").write_text("def broken(:\n")
    records = [r for r in python_docs(tmp_path) if not r.name.startswith("topic ")]
    assert [record.name for record in records] == ["m.C.g", "m (short)"]
    assert "m.f\n    Short one of f" in records[1].text


def test_a_file_that_is_no_python_is_told_and_not_skipped(tmp_path: Path):
    (tmp_path / "broken.py").write_text("def broken(:\n")
    with pytest.raises(SyntaxError):
        list(python_docs(tmp_path))


def test_docstrings_keep_their_names_and_order(tmp_path: Path):
    source = '"M."\nif True:\n    async def f():\n        "F."\nclass C:\n    "C."\n'
    assert [tuple(d) for d in docstrings(source, "m")] == [
        ("m", "M."),
        ("m.f", "F."),
        ("m.C", "C."),
    ]
    (tmp_path / "pkg").mkdir()
    for name in ("b.py", "__init__.py", "test_b.py", "not-a-name.py"):
        (tmp_path / "pkg" / name).write_text("")
    assert [name for name, _ in module_files(tmp_path)] == ["pkg", "pkg.b"]


def test_the_language_contrast_is_matched_word_by_word():
    records = list(BUILTIN_CORPORA["language"]())
    sentences = [record.text for record in records if record.label == "S"]
    strings = [record.text for record in records if record.label == "N"]
    assert len(sentences) == len(strings) == 240
    assert len({record.text for record in records}) == 480
    for sentence, string in zip(sentences, strings, strict=True):
        assert re.fullmatch(r"[a-z]+( [a-z]+){11}", sentence)
        assert [len(word) for word in sentence.split()] == [len(w) for w in string.split()]
    assert not words_of(sentences) & words_of(strings)


def test_the_generator_reproduces_the_shipped_nonwords():
    made = nonword_strings(read_lines("sentences.txt"), read_lines("real_words.txt"))
    assert list(made) == read_lines("nonwords.txt")


def test_another_seed_gives_other_nonwords():
    sentences = read_lines("sentences.txt")
    first, second = (next(nonword_strings(sentences, (), seed=seed)) for seed in (1, 2))
    assert first != second


def test_too_few_words_to_make_nonwords_from_are_refused():
    with pytest.raises(ValueError, match="1 words"):
        list(nonword_strings(["bcd"], ()))
    with pytest.raises(ValueError, match="new non-word"):
        list(nonword_strings(["banana"], ("banana",)))


def test_nonwords_can_be_pronounced():
    model = LetterModel(words_of(read_lines("sentences.txt")))
    nonwords = sorted(words_of(read_lines("nonwords.txt")))
    assert all(len(word) == 1 or model.pronounceable(word) for word in nonwords)
    for bad in ("strngth", "aaa", "bcd", "ngat", "yrt"):
        assert not model.pronounceable(bad), bad


def test_no_nonword_is_in_the_documentation_of_the_language(docs):
    topics = [record.text for record in docs if record.name.startswith("topic ")]
    found = words_of(read_lines("nonwords.txt")) & words_of(topics)
    assert not {word for word in found if len(word) >= 4}


def test_no_nonword_is_in_real_text(shared: Path):
    data = shared / "data"
    texts = [path.read_text(encoding="utf-8") for path in data.glob("wikitext2/[tv]*.txt")]
    texts += [p.read_bytes().decode("cp1252", "replace") for p in data.glob("nltk_*/*/*.txt")]
    texts += [path.read_text(encoding="utf-8") for path in data.glob("blimp/*.jsonl")]
    texts += [path.read_text(encoding="utf-8") for path in data.glob("emotion/*.txt")]
    lines = (data / "c4_sample" / "tiny_c4_sample.jsonl").read_text(encoding="utf-8").splitlines()
    texts += [json.loads(line)["text"] for line in lines]
    found = words_of(read_lines("nonwords.txt")) & words_of(texts)
    # Abbreviations and initials make nearly every pair of letters occur somewhere.
    assert not {word for word in found if len(word) >= 3}


def test_sentences_are_in_no_published_stimulus_set(shared: Path):
    ours = set(read_lines("sentences.txt"))
    for path in sorted((shared / "data" / "langloc_stimuli").glob("*.csv")):
        for row in path.read_text(encoding="utf-8").lower().splitlines()[1:]:
            assert " ".join(row.split(",")[1:13]) not in ours


def test_sums_are_right_and_distinct():
    records = list(BUILTIN_CORPORA["arithmetic"]())
    assert [record.label for record in records] == ["hard"] * 100 + ["easy"] * 100
    assert len({record.text for record in records}) == 200
    for record in records:
        found = re.fullmatch(r"Question: Solve (\d+) \+ (\d+)\?\nAnswer: (\d+)", record.text)
        assert found
        a, b, c = map(int, found.groups())
        assert a + b == c
        low, high = (100, 199) if record.label == "hard" else (1, 19)
        assert low <= min(a, b)
        assert max(a, b) <= high


@pytest.mark.parametrize("name", sorted(BUILTIN_CORPORA))
def test_a_corpus_begins_anew_at_each_call_and_its_labels_are_announced(name):
    first, second = (list(itertools.islice(BUILTIN_CORPORA[name](), 5)) for _ in range(2))
    assert first == second
    assert (first[0].label is not None) == (name in LABELLED)


# --- randomness


def test_splitmix_follows_its_published_stream():
    random = SplitMix64(1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [random.next_u64() for _ in range(3)] == expected


def test_splitmix_draws_within_bounds():
    random = SplitMix64(0)
    assert {random.below(3) for _ in range(100)} == {0, 1, 2}
    assert {random.weighted([0, 2, 0, 1]) for _ in range(100)} == {1, 3}
    for stop in (0, -1, 2**64 + 1):
        with pytest.raises(ValueError, match="stop"):
            random.below(stop)
