"""The tokenizer of ``actlas-6m``: byte-level BPE, 4,096 tokens, fitted on the training text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from actlas.pipeline.builtin.training_text import MISSING

VOCABULARY_SIZE = 4_096
CONTEXT = 512


class SpecialTokens(NamedTuple):
    """The strings of the special tokens, in the order of their ids from 0."""

    pad: str = "<|pad|>"
    bos: str = "<|bos|>"
    eos: str = "<|eos|>"
    missing: str = MISSING


SPECIAL = SpecialTokens()
PAD_ID, BOS_ID, EOS_ID, MISSING_ID = range(4)


def fit_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Fit the merges on ``texts``; digits stay single, so that sums are legible."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL.bos} $A",
        pair=f"{SPECIAL.bos} $A {SPECIAL.bos}:1 $B:1",
        special_tokens=[(SPECIAL.bos, BOS_ID)],
    )
    return tokenizer


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap for ``save_pretrained``, with the roles of the special tokens."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=SPECIAL.bos,
        eos_token=SPECIAL.eos,
        pad_token=SPECIAL.pad,
        additional_special_tokens=[SPECIAL.missing],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
