"""Pronounceable non-words from a letter trigram model, each as long as the word it stands for.

``python -m actlas.pipeline.builtin.nonwords`` prints the strings shipped in ``data/nonwords.txt``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from importlib.resources import files

from actlas.pipeline.builtin.splitmix import SplitMix64

SEED = 240

SINGLE_LETTERS = ("e", "u")
"""Non-words for the words ``a`` and ``i``."""

UNSPEAKABLE = "|".join(
    (
        r"[aeiouy]{3}",
        r"[^aeiouy]{4}",
        r"(.)\1\1",
        r"^(.)\2",
        r"^y[^aeiou]",
        r"[aeou]y[aeiou]",
        "uu",
        "ii",
    )
)
"""Sequences of letters that occur in no word of the sentences."""

MAX_DRAWS = 20_000
"""Largest number of draws per proposal, and of proposals per word."""


class LetterModel:
    """A letter trigram model of distinct words, with their initial and final consonant clusters.

    Parameters
    ----------
    words : iterable of str
        The words; repetitions do not count.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = sorted(set(words))
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for word in self.words:
            padded = f"^^{word}$"
            for i in range(2, len(padded)):
                counts[padded[i - 2 : i]][padded[i]] += 1
        # Sorted, so that a draw does not depend on the order of the words.
        self.counts = {context: sorted(after.items()) for context, after in counts.items()}
        self.onsets = {_cluster(word, r"^[^aeiouy]+") for word in self.words}
        self.codas = {_cluster(word, r"[^aeiouy]+$") for word in self.words}

    def propose(self, n_letters: int, random: SplitMix64) -> str:
        """Draw strings until one has ``n_letters`` letters and is pronounceable.

        Parameters
        ----------
        n_letters : int
            Letters of the string.
        random : SplitMix64
            The generator.

        Raises
        ------
        ValueError
            `MAX_DRAWS` draws give no such string, since the model has too few words.
        """
        if n_letters == 1:
            return SINGLE_LETTERS[random.below(len(SINGLE_LETTERS))]
        for _ in range(MAX_DRAWS):
            word = self._draw(n_letters, random)
            if len(word) == n_letters and self.pronounceable(word):
                return word
        raise ValueError(
            f"{MAX_DRAWS} draws from a model of {len(self.words)} words gave no pronounceable "
            f"string of {n_letters} letters; fit it on more words"
        )

    def _draw(self, n_letters: int, random: SplitMix64) -> str:
        word = ""
        while len(word) <= n_letters:
            after = self.counts[f"^^{word}"[-2:]]
            letter = after[random.weighted([count for _, count in after])][0]
            if letter == "$":
                break
            word += letter
        return word

    def pronounceable(self, word: str) -> bool:
        """Return whether a string has a vowel, known clusters at its ends, no unspeakable run."""
        return (
            re.search(r"[aeiouy]", word) is not None
            and re.search(UNSPEAKABLE, word) is None
            and _cluster(word, r"^[^aeiouy]+") in self.onsets
            and _cluster(word, r"[^aeiouy]+$") in self.codas
        )


def _cluster(word: str, pattern: str) -> str:
    found = re.search(pattern, word)
    return found[0] if found else ""


def read_lines(name: str) -> list[str]:
    """Return the lines of a text file in the folder ``data``."""
    return (
        files("actlas.pipeline.builtin")
        .joinpath("data", name)
        .read_text(encoding="utf-8")
        .splitlines()
    )


def nonword_strings(
    sentences: Iterable[str], real_words: Collection[str], seed: int = SEED
) -> Iterator[str]:
    """Yield one string of non-words per sentence, word by word of equal length.

    Parameters
    ----------
    sentences : iterable of str
        The sentences, in lower case without punctuation.
    real_words : collection of str
        Words to reject besides those of the sentences. The shipped list has the generator's
        proposals that occur in the training text, the documentation or a published tokenizer's
        vocabulary, differ from such a word in the ending alone, were recognized in reading, or
        are offensive.
    seed : int
        Seed of `SplitMix64`.

    Raises
    ------
    ValueError
        The sentences are too few for enough distinct non-words.

    Notes
    -----
    Non-words of three letters occur at most once in a string; longer ones occur at most once in
    all strings.
    """
    sentences = list(sentences)
    model = LetterModel(word for sentence in sentences for word in sentence.split())
    refused = set(real_words).union(model.words)
    random = SplitMix64(seed)
    used: set[str] = set()
    for sentence in sentences:
        string: list[str] = []
        for word in sentence.split():
            barred = used if len(word) >= 4 else set(string) if len(word) == 3 else set()
            string.append(_nonword(model, len(word), random, refused, barred))
            used.add(string[-1])
        yield " ".join(string)


def _nonword(
    model: LetterModel,
    n_letters: int,
    random: SplitMix64,
    refused: Collection[str],
    barred: Collection[str],
) -> str:
    for _ in range(MAX_DRAWS):
        proposal = model.propose(n_letters, random)
        if proposal not in refused and proposal not in barred:
            return proposal
    raise ValueError(
        f"none of {MAX_DRAWS} proposals of {n_letters} letters is a new non-word "
        f"({len(barred)} are taken); give more sentences, so that the letters vary"
    )


def main() -> None:
    """Generate the shipped strings and print them."""
    for string in nonword_strings(read_lines("sentences.txt"), read_lines("real_words.txt")):
        sys.stdout.write(f"{string}\n")


if __name__ == "__main__":
    main()
