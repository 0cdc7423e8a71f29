"""What a sparse autoencoder was trained on, against the store that it is to encode.

A difference that makes the rows those of another tensor is refused; one that makes them another
distribution of the same tensor is reported. docs/sae.md has the table of all fields.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from actlas.analysis.sae.model_names import plain_name
from actlas.analysis.sae.record import CONFIG_FILE
from actlas.analysis.sae.trained_on import FIELDS, NOT_COMPARED, begins_with_special
from actlas.store.errors import ConfigError, SaeError
from actlas.store.format.schema import Plan

MAX_SHOWN = 100
"""Largest number of characters of a value that are shown."""

MAX_UNKNOWN = 20
"""Largest number of unknown fields that are named."""

_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed")

_HIDDEN = ("mlp_hidden",)

_OUTSIDE = (*_STREAM, *_HIDDEN)
"""Kinds of hookpoints outside of the attention's heads."""

_EFFECTS = {
    "center_writing_weights": ": the mean over its units was subtracted from each row, which "
    "nothing has done to the store's.",
    "fold_value_biases": ", which changes what the heads write; the store's model is as published.",
    "refactor_factored_attn_matrices": ", which changes what the heads write; the store's model is "
    "as published.",
    "fold_ln": ", which changes the outputs of norms; the store's model is as published.",
}
"""What TransformerLens's changes to a model do to its activations."""

_RMS = ("Llama", "Mistral", "Mixtral", "Gemma", "Qwen2", "Qwen3", "Phi3", "Olmo2")
"""Beginnings of architectures with RMSNorm, whose weights TransformerLens does not center."""

_CLASSES = (None, "HookedTransformer", "HookedMamba", "AutoModelForCausalLM", "TransformerBridge")
"""Classes of models whose hooks are known."""

_LOADING = frozenset(
    [
        *("device", "n_devices", "move_to_device", "default_padding_side", "default_prepend_bos"),
        *("first_n_layers", "n_ctx", "trust_remote_code", "cache_dir", "token"),
        *("local_files_only", "low_cpu_mem_usage", "attn_implementation", "use_safetensors"),
        *("device_map", "max_memory", "offload_folder"),
    ]
)
"""Arguments of ``from_pretrained`` that say how a model is loaded, and change no activation."""


class Difference(NamedTuple):
    """A difference between what a sparse autoencoder was trained on and a store.

    Attributes
    ----------
    field : str
        The field of ``cfg.json``.
    what : str
        Both values, and what to do.
    refused : bool
        Whether the rows are another tensor than the autoencoder was trained on. Otherwise they are
        another distribution of the same tensor, which is only told.
    """

    field: str
    what: str
    refused: bool


def differences(known: Mapping[str, Any], plan: Plan, hookpoint: str) -> Iterator[Difference]:
    """Yield the differences between what an autoencoder was trained on and a store.

    Parameters
    ----------
    known : mapping
        The result of :func:`trained_on`.
    plan : Plan
        The plan of the store.
    hookpoint : str
        The hookpoint of the store to encode.
    """
    checks: tuple[Callable[[Mapping[str, Any], Plan, str], Iterator[Difference]], ...] = (
        _model,
        _hook,
        _processing,
        _tokens,
    )
    for check in checks:
        yield from check(known, plan, hookpoint)


def check_trained_on(
    known: Mapping[str, Any], plan: Plan, hookpoint: str, accept: Collection[str] = ()
) -> list[str]:
    """Return what a user should know of an autoencoder's training, or raise where it does not fit.

    Parameters
    ----------
    known : mapping
        The result of :func:`trained_on`.
    plan : Plan
        The plan of the store.
    hookpoint : str
        The hookpoint of the store to encode.
    accept : collection of str
        Fields whose difference is reported, not refused.

    Raises
    ------
    SaeError
        The rows are those of another tensor; ``details["field"]`` names the field.
    """
    said = []
    for each in differences(known, plan, hookpoint):
        if each.refused and each.field not in accept:
            raise SaeError(
                f"this sparse autoencoder was trained on other activations: {each.what} To encode "
                f"these rows with it nevertheless: --accept {each.field}.",
                field=each.field,
            )
        said.append(f"{each.field}: {each.what}")
    unknown = sorted(known.keys() - FIELDS.keys() - NOT_COMPARED)
    if unknown:
        named = ", ".join(name[:MAX_SHOWN] for name in unknown[:MAX_UNKNOWN])
        more = f" and {len(unknown) - MAX_UNKNOWN:,} more" if len(unknown) > MAX_UNKNOWN else ""
        said.append(f"not compared, since this version does not know them: {named}{more}")
    if missing := [name for name in ("model_name", "prepend_bos") if name not in known]:
        said.append(f"not compared, since {CONFIG_FILE} does not say: {', '.join(missing)}")
    return said


def check_accepted(accept: Collection[str]) -> None:
    """Raise ``ConfigError`` where a name is no field that can be accepted.

    Parameters
    ----------
    accept : collection of str
        The names.
    """
    for name in accept:
        if name not in FIELDS:
            raise ConfigError(
                f"--accept: got {name!r}, expected fields of {CONFIG_FILE}: {', '.join(FIELDS)}.",
                field="accept",
            )


def _model(known: Mapping[str, Any], plan: Plan, _: str) -> Iterator[Difference]:
    model = plan.model
    weights = known.get("model_weights_sha256")
    if weights is not None:
        if weights != model.weights_sha256:
            yield Difference(
                "model_weights_sha256",
                f"it was trained on a model with the weights {weights[:16]!r}…, and those of the "
                f"store's model {model.id} are {model.weights_sha256[:16]}….",
                refused=True,
            )
        return
    name = known.get("model_name", "")[:MAX_SHOWN]
    if not name:
        return
    if model.untrained_seed is not None:
        yield Difference(
            "model_name",
            f"{CONFIG_FILE} says {name!r}, and the weights of the store's model are random "
            f"(untrained, seed {model.untrained_seed}).",
            refused=True,
        )
    elif plain_name(name) != plain_name(model.id):
        local = model.revision is None and not model.id.startswith("builtin:")
        unsure = " Whether the folder holds that model cannot be seen from its name." * local
        yield Difference(
            "model_name",
            f"{CONFIG_FILE} says {name!r}, and the store's model is {model.id!r}.{unsure}",
            refused=not local,
        )


def _hook(known: Mapping[str, Any], _: Plan, hookpoint: str) -> Iterator[Difference]:
    kind, _dot, layer = hookpoint.partition(".")
    said = known.get("hook_layer")
    if said is not None and layer.isdecimal() and kind in (*_STREAM, *_HIDDEN, "attn_z"):
        same = int(layer) + {"resid_post": 1, "resid_pre": -1}.get(kind, 0)  # the same tensor
        if said not in (int(layer), same):
            yield Difference(
                "hook_layer",
                f"{CONFIG_FILE} says layer {said}, and the rows are of {hookpoint}.",
                refused=True,
            )
    for field in ("hook_head_index", "hook_head_index_out"):
        if known.get(field) is not None:
            yield Difference(
                field,
                f"{CONFIG_FILE} says head {known[field]} alone, and rows of {hookpoint} have all "
                "heads.",
                refused=True,
            )
    for field in ("hook_name_out", "hf_hook_name_out"):
        out = known.get(field)
        if out is not None and out != known.get(field.removesuffix("_out")):
            yield Difference(
                field,
                f"{CONFIG_FILE} says {out[:MAX_SHOWN]!r}: it is a transcoder, which "
                "reconstructs another tensor than it reads.",
                refused=True,
            )


def _processing(known: Mapping[str, Any], plan: Plan, hookpoint: str) -> Iterator[Difference]:
    """Yield the changes of TransformerLens to a model's weights that change the hookpoint's rows.

    ``center_writing_weights`` subtracts from each row of the residual stream, and from what is
    added to it, the mean over its units; it does so in models with LayerNorm alone.
    ``fold_value_biases`` moves the value biases out of the heads. ``fold_ln`` leaves all named
    hookpoints as they are. What has no effect is reported, what only concerns loading is not.
    """
    kind = hookpoint.partition(".")[0]
    rms = plan.model.architecture.startswith(_RMS)
    same: Mapping[str, bool] = {
        "center_writing_weights": rms or kind in (*_HIDDEN, "attn_z"),
        **dict.fromkeys(("fold_value_biases", "refactor_factored_attn_matrices"), kind in _OUTSIDE),
        "fold_ln": kind in (*_OUTSIDE, "attn_z"),
        "center_unembed": True,
    }
    field = "model_from_pretrained_kwargs"
    for name, value in known.get(field, {}).items():
        if value is None or value is False or name in _LOADING:
            continue
        shown = f"{CONFIG_FILE} says {{{name[:MAX_SHOWN]!r}: {repr(value)[:MAX_SHOWN]}}}"
        if name in same:
            none = f", which leaves rows of {hookpoint} in this model as they are."
            what = none if same[name] else _EFFECTS[name]
            yield Difference(field, shown + what, refused=not same[name])
        elif name == "revision" or name.startswith("checkpoint_"):
            if value not in (plan.model.revision, plan.request.get("revision")):
                what = f", and the store's model has revision {plan.model.revision}."
                yield Difference(field, shown + what, refused=plan.model.revision is not None)
        elif name in ("dtype", "torch_dtype"):
            if str(value).removeprefix("torch.") != plan.model.compute_dtype:
                what = f", and the store's rows were computed in {plan.model.compute_dtype}."
                yield Difference(field, shown + what, refused=False)
        else:
            what = ", whose effect on the activations is not known here."
            yield Difference(field, shown + what, refused=False)


def _tokens(known: Mapping[str, Any], plan: Plan, _: str) -> Iterator[Difference]:
    bos, has = known.get("prepend_bos"), begins_with_special(plan)
    if bos is True and has is False:
        yield Difference(
            "prepend_bos",
            f"{CONFIG_FILE} says true: each window began with a BOS token, and none of the store's "
            "does, so all rows differ. Plan the store with --prepend-bos.",
            refused=False,
        )
    if bos is False and has is True:
        yield Difference(
            "prepend_bos",
            f"{CONFIG_FILE} says false: windows had no BOS token, and the tokenizer of the store "
            "begins each window with a special token, so all rows differ.",
            refused=False,
        )
    length = known.get("context_size")
    if length is not None and plan.windows.max_length > length:
        yield Difference(
            "context_size",
            f"{CONFIG_FILE} says {length:,} tokens, and windows of the store have up to "
            f"{plan.windows.max_length:,}: it has seen no rows of later positions.",
            refused=False,
        )
    part = [step for step in known.get("seqpos_slice", ()) if step is not None]
    if part:
        positions = repr(known["seqpos_slice"])[:MAX_SHOWN]
        yield Difference(
            "seqpos_slice",
            f"{CONFIG_FILE} says {positions}: it was trained on these "
            "positions of each window alone, and the store has rows of all.",
            refused=False,
        )
    if known.get("exclude_special_tokens") and plan.keep_special:
        yield Difference(
            "exclude_special_tokens",
            f"{CONFIG_FILE} says it was trained without special tokens, and the store has rows of "
            "them (--keep-special; rows/special marks them).",
            refused=False,
        )
    if known.get("model_class_name") not in _CLASSES:
        yield Difference(
            "model_class_name",
            f"{CONFIG_FILE} says {known['model_class_name'][:MAX_SHOWN]!r}, whose hooks are not "
            "known here.",
            refused=False,
        )
