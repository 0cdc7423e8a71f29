r"""How messages name options and commands: as the command line does, or as Python does.

Messages are written once, in the words of the command line. The command line prints them as they
are; everywhere else :func:`spoken` translates options into keyword arguments and commands into
calls, at the one place where an error or a line becomes text.

>>> spoken("a plan needs --model and --corpus: `actlas extract run.zarr --max-tokens 2M`")
'a plan needs model= and corpus=: `actlas.extract("run.zarr", max_tokens="2M")`'
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

FLAGS = frozenset(
    {
        *("trust_remote_code", "lowercase", "pooled_only", "with_loss", "keep_special"),
        *("prepend_bos", "lines", "allow_remote_code", "retry_quarantined", "full"),
        *("remove_orphans", "signed", "overwrite"),
    }
)
"""Options without a value, by their names in Python."""

VALUES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("model", "corpus", "hookpoints", "tokenizer", "untrained", "text_field"),
            *("label_field", "messages_field", "span_fields", "image_field", "delimiter"),
            *("max_tokens", "max_length", "shard_rows", "seed", "address", "model_path"),
            *("max_device_bytes", "offload_folder", "tokens_per_batch", "threads"),
            *("cpus_per_worker", "gpus_per_worker", "max_memory_bytes", "max_task_faults"),
            *("max_process_deaths", "max_node_losses", "deadline_floor_s", "start_limit_s"),
            *("writers_per_machine", "sae", "name", "accept", "out", "mask", "prompts"),
            *("new_tokens", "random", "temperature", "hookpoint", "d_sae", "k", "l1", "fraction"),
            *("steps", "batch_size", "lr", "checkpoint_every", "contrast", "top", "figures", "dpi"),
        ),
        (),
    ),
    "revision": ("main",),
    "long": ("window", "truncate"),
    "order": ("shuffled", "corpus"),
    "sample": ("uniform", "head"),
    "pool": ("last", "mean", "sum"),
    "dtype": ("bfloat16", "float16", "float32"),
    "model_dtype": ("auto", "bfloat16", "float16", "float32"),
    "compression": ("none", "fast", "dense"),
    "executor": ("inline", "ray"),
    "workers": ("auto",),
    "device": ("auto", "cpu", "cuda", "mps"),
    "device_map": ("auto", "balanced", "sequential"),
    "packing": ("auto", "padded", "packed"),
    "on_nonfinite": ("record", "refuse", "omit"),
    "architecture": ("topk", "relu"),
}
"""Options with a value, and those of their values that are plain words."""

_RENAMED = {"prompt": "prompts", "width": "d_sae", "kind": "architecture"}

_CALLS: Mapping[tuple[str, ...], tuple[str, tuple[str, ...]]] = {
    ("plan",): ("actlas.plan", ()),
    ("extract",): ("actlas.extract", ()),
    ("verify",): ("actlas.verify", ()),
    ("repair",): ("actlas.repair", ()),
    ("info",): ("actlas.open", ()),
    ("status",): ("actlas.open", ()),
    ("localize",): ("actlas.localize", ("contrast",)),
    ("ablate",): ("actlas.ablate", ("mask", "corpus")),
    ("sae", "train"): ("actlas.train_sae", ("hookpoint", "out")),
    ("sae", "encode"): ("actlas.encode_sae", ("sae",)),
    ("sae", "index"): ("actlas.index_sae", ("sae",)),
}
"""The function of each command, and those of the command's options that it takes by position."""

_COMMAND = re.compile(r"`(actlas [^`]+)`")

_FIRST = re.compile(r"--([a-z][a-z0-9-]*) ([^\s:][^:\n]*)(?=: )")

_OPTION = re.compile(
    r"""(?<![\w/-])--(?P<no>no-)?(?P<name>[a-z][a-z0-9-]*)
    (?:[ ](?P<value>'[^'\n]*'|"[^"\n]*"|[A-Z]{2}[A-Z_]*(?![\w'])|[^\s,;()'"`]+(?:,[^\s,;()'"`]+)*))?
    """,
    re.VERBOSE,
)

_PROSE = re.compile(r"(and|conflicts|is|needs|or|requires|stores|was|were)\b|.*--")
"""What follows an option that a sentence begins with, and is no value."""

_TELLING = re.compile(r".*[\d/_*=:,\\].*")
"""A word that is a value and no word of the sentence."""

_PHRASES = (
    ("run the same command again", "repeat the same call"),
    ("Run the same command again", "Repeat the same call"),
    ("the same command", "the same call"),
    ("The same command", "The same call"),
)

_shell = False
"""Whether this process is the command line at work."""

_kept = ContextVar("_kept", default=False)


@contextmanager
def shell() -> Iterator[None]:
    """Leave messages in the words of the command line while a command runs."""
    global _shell
    before, _shell = _shell, True
    try:
        yield
    finally:
        _shell = before


@contextmanager
def unworded() -> Iterator[None]:
    """Leave messages as they are written in this thread, for a record that others will read."""
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)


def spoken(text: str) -> str:
    """Return a message in the words of the one who reads it."""
    return text if _shell or _kept.get() else in_python(text)


def in_python(text: str) -> str:
    """Return a message with keyword arguments and calls for options and commands.

    Options and commands that Python does not have stay as they are, and so do those of other
    programs.

    Examples
    --------
    >>> in_python("--max-length 4096 is more than the context. Give --no-lowercase")
    'max_length=4096 is more than the context. Give lowercase=False'
    >>> in_python("Restore the folder, or give another --out.")
    'Restore the folder, or give another out=.'
    """
    pieces = _COMMAND.split(text)
    calls = [f"`{_call(command)}`" for command in pieces[1::2]]
    for i in range(0, len(pieces), 2):
        pieces[i] = _options(pieces[i])
    pieces[1::2] = calls
    text = "".join(pieces)
    for words, ours in _PHRASES:
        text = text.replace(words, ours)
    return text


def _options(text: str) -> str:
    first = _FIRST.match(text)
    if first and (name := _known(first[1])) in VALUES and not _PROSE.match(first[2]):
        known = _OPTION.match(text)
        if known is None or not _is_value(name, (known["value"] or "").rstrip(".:")):
            return f"{name}={_literal(first[2])}" + _options(text[first.end() :])
    return _OPTION.sub(_argument, text)


def _argument(found: re.Match[str]) -> str:
    name, value = _known(found["name"]), found["value"] or ""
    after = found.string[found.end() : found.end() + 1]
    rest = found[0].removeprefix("--" + (found["no"] or "") + found["name"])
    if name in FLAGS:
        return f"{name}={not found['no']}{rest}"
    if name not in VALUES or found["no"]:
        return found[0]
    trimmed = value.rstrip(".:")
    if not _is_value(name, trimmed):
        return f"{name}{'' if not value and after == ':' else '='}{rest}"
    another = "," if found.string.startswith(" --", found.end()) else ""
    return f"{name}={_literal(trimmed)}{value[len(trimmed) :]}{another}"


def _known(name: str) -> str:
    name = name.replace("-", "_")
    return _RENAMED.get(name, name)


def _is_value(name: str, word: str) -> bool:
    if not word:
        return False
    listed = [part in VALUES[name] for part in word.split(",")]
    return all(listed) or word.isupper() or word[0] in "'\"" or bool(_TELLING.fullmatch(word))


def _literal(word: str) -> str:
    """Return a value as Python writes it; a word in capitals stands for a value."""
    if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word) or re.fullmatch(r"[A-Z][A-Z_]*", word):
        return word
    if word[:1] in ("'", '"') and word[-1:] == word[:1]:
        return word
    if re.fullmatch(r"\w+(,\w+)+", word):
        return json.dumps(word.split(","))
    return json.dumps(word, ensure_ascii=False)


def _call(command: str) -> str:
    """Return the call that does what a command does; the command itself if there is none."""
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        return command
    verb = next((v for v in (tuple(words[:2]), tuple(words[:1])) if v in _CALLS), None)
    if words[:1] == ["contexts"]:
        return _lookup(words[1:], command)
    if verb is None:
        return command
    function, places = _CALLS[verb]
    parsed = _parsed(words[len(verb) :])
    if parsed is None:
        return command
    paths, options = parsed
    if not paths and not options:
        return function
    given = [_literal(" ".join(paths))] if paths else []
    given += [_literal(str(options.pop(name))) for name in places if name in options]
    given += [f"{k}={v if isinstance(v, bool) else _literal(v)}" for k, v in options.items()]
    return f"{function}({', '.join(given)})"


def _lookup(words: list[str], command: str) -> str:
    """Return the call for ``actlas contexts``, which is one on an open store."""
    parsed = _parsed(words, frozenset({"unit", "feature", "some"}))
    if parsed is None or not parsed[0]:
        return command
    paths, options = parsed
    store = f"actlas.open({_literal(' '.join(paths))})"
    if "hookpoint" in options:
        return f"{store}.units({_literal(str(options['hookpoint']))})"
    return f"{store}.features({_literal(str(options['sae']))})" if "sae" in options else command


def _parsed(
    words: list[str], more: frozenset[str] = frozenset()
) -> tuple[list[str], dict[str, str | bool]] | None:
    """Return a command's paths and options; None if it has one that Python does not have."""
    paths: list[str] = []
    options: dict[str, str | bool] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            paths.append(word)
            continue
        name = _known(word[2:])
        if name in FLAGS:
            options[name] = True
        elif name in VALUES or name in more:
            if (value := next(rest, None)) is not None:
                options[name] = value
        else:
            return None
    return paths, options
