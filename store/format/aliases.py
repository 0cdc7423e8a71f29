"""Names that other libraries give to the same tensors: TransformerLens's hooks, nnsight's paths.

A hook of TransformerLens is answered with our name where both are the same tensor in the model as
transformers runs it: ``HookedTransformer.from_pretrained_no_processing``, or a
``TransformerBridge`` that did not fold or centre weights. Where it is another tensor, or may be one
of two, the name is refused, and the message names what comes nearest. docs/hookpoints.md has the
table; the definitions are those of transformer_lens 3.9 (``components/transformer_block.py``,
``components/bert_block.py``, ``components/abstract_attention.py``, ``components/mlps``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from actlas.store.display.text import did_you_mean, listed
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

BLOCK_HOOKS: Mapping[str, str] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "attn_z",
    "mlp.hook_post": "mlp_hidden",
}
"""TransformerLens's names of hooks inside a block, and our names of the same tensors."""

_MORE_HOOKS: Mapping[str, str] = {
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "hook_normalized_resid_post": "resid_post",
}
"""Second names: of the block in a TransformerBridge, and of BERT's stream behind the last norm."""

_SHORT = {"z": "attn_z", "post": "mlp_hidden", "mlp_post": "mlp_hidden"}
"""The first part of a key of TransformerLens's cache, ``cache["z", 3]``, where it is not ours."""

_NORM = (
    "the input divided by its scale, before the norm's weights, and no module gives that; the "
    "path of the norm's module (model.layers.{L}.input_layernorm) gives its output"
)

_PROJECTION = (
    "the output of a projection, before any rotary embedding: give the path of that module "
    "(model.layers.{L}.self_attn.{x}_proj; GPT-2 and GPT-NeoX have one module for q, k and v)"
)

_BY_POSITIONS = "a number for each head, query and key, and not a vector for each position"

_COPIES = "resid_pre.{L} once for each head: store resid_pre.{L}"

_PRE = (
    "what goes into the activation function: give the path of the module that computes it "
    "(transformer.h.{L}.mlp.c_fc in GPT-2, model.layers.{L}.mlp.gate_proj in a gated MLP, whose "
    "other factor, hook_pre_linear, is up_proj); mlp_hidden.{L} is hook_post"
)

_PART = (
    "the module's own output, which in models with a norm behind it is not what is added to the "
    "residual stream: {ours}.{{L}} is what is added; the module's path gives its output"
)

_REFUSED: Mapping[str, str] = {
    "attn.hook_q": _PROJECTION.replace("{x}", "q"),
    "attn.hook_k": _PROJECTION.replace("{x}", "k"),
    "attn.hook_v": _PROJECTION.replace("{x}", "v"),
    "attn.hook_rot_q": "the query after the rotary embedding, which is the output of no module",
    "attn.hook_rot_k": "the key after the rotary embedding, which is the output of no module",
    "attn.hook_attn_scores": _BY_POSITIONS,
    "attn.hook_pattern": _BY_POSITIONS,
    "attn.hook_result": "each head's own output: attn_z.{L} times the head's part of the output "
    "projection gives it; attn_out.{L} is their sum",
    "attn.hook_out": _PART.format(ours="attn_out"),
    "mlp.hook_out": _PART.format(ours="mlp_out"),
    "hook_attn_in": _COPIES,
    "attn.hook_attn_input": "attention's input behind its norm: give the path of the norm's module",
    "hook_q_input": _COPIES,
    "hook_k_input": _COPIES,
    "hook_v_input": _COPIES,
    "hook_mlp_in": "resid_mid.{L} in a sequential block, resid_pre.{L} in a parallel one: give "
    "that name",
    "mlp.hook_pre": _PRE,
    "mlp.hook_pre_linear": _PRE,
    "mlp.hook_gate": _PRE,
    "mlp.hook_mid": "inside the activation function, and the output of no module",
    **{f"{norm}.hook_{x}": _NORM for norm in ("ln1", "ln2") for x in ("normalized", "scale")},
}
"""Hooks inside a block that are not answered, and what they are. ``{L}`` is the block."""

_REFUSED_OUTSIDE: Mapping[str, str] = {
    "hook_pos_embed": "the embedding of positions: the path of its module gives it "
    "(transformer.wpe); resid_pre.0 is the sum of both embeddings",
    "hook_full_embed": "the sum of all embeddings after their norm: that is resid_pre.0",
    "hook_tokens": "the ids of the tokens, which every store has: rows/token_id",
    "ln_final.hook_normalized": _NORM.replace("model.layers.{L}.input_layernorm", "model.norm"),
    "ln_final.hook_scale": _NORM.replace("model.layers.{L}.input_layernorm", "model.norm"),
    "unembed.hook_out": "the logits: give the path of the head's module (lm_head)",
    "hook_unembed": "the logits: give the path of the head's module (lm_head)",
}

_EMBED = ("hook_embed", "embed.hook_out")

_IN_BLOCK = re.compile(r"blocks\.([^.]+)\.(.*hook_.*)")

_SCALED_EMBEDDING = re.compile(r"(Recurrent|T5)?Gemma|Bloom")

_POST_NORM = re.compile(
    r"(?!\w*(Modern|EuroBert|MegatronBert|PreLayerNorm|RobertaXL))"
    r"\w*?(Bert|Roberta|Electra|Deberta|MPNet|Camembert|Albert|XLM|Flaubert)"
)
"""Architectures whose blocks norm the residual stream itself, without those with names alike."""

_INDEX = re.compile(r"\[(-?\d+|\*|:)\]")

_SIDE = re.compile(r"(.+)\.(output|input|inputs)((?:\.-?\w+)*)")

Side = Literal["input", "output"]


class ModulePlace(NamedTuple):
    """The input or output of a module, as nnsight writes it.

    Attributes
    ----------
    paths : tuple of str
        The module's path; and without the name of the variable in front, which is often ``model``.
    side : {"input", "output"}
        The side.
    """

    paths: tuple[str, ...]
    side: Side


def lens_name(name: str, architecture: str = "") -> str | None:
    """Return our name or glob for a hook of TransformerLens; None for other names.

    Parameters
    ----------
    name : str
        The name, in which the block may be a glob: ``blocks.*.hook_resid_post``.
    architecture : str
        The model's class, on which it depends whether some hooks are the same tensor.

    Raises
    ------
    HookpointError
        The hook is another tensor than any hookpoint, or of another than its name says here.

    Examples
    --------
    >>> lens_name("blocks.3.attn.hook_z"), lens_name("hook_embed"), lens_name("resid_post.3")
    ('attn_z.3', 'embed', None)
    """
    if name in _EMBED:
        if _SCALED_EMBEDDING.match(architecture) or _POST_NORM.match(architecture):
            why = f"in a {architecture} it is scaled or normed, and our embed is the plain output "
            raise _refused(name, f"{why}of the embedding: resid_pre.0 is what enters the blocks")
        return "embed"
    if name in _REFUSED_OUTSIDE:
        raise _refused(name, _REFUSED_OUTSIDE[name])
    match = _IN_BLOCK.fullmatch(name)
    if match is None:
        if "." not in name and f"blocks.0.{name}" in _all_hooks():
            raise _refused(
                name, f"a hook of every block: write blocks.L.{name}, or blocks.*.{name}"
            )
        return None
    layer, hook = match.groups()
    if hook in _REFUSED:
        raise _refused(name, _REFUSED[hook].format(L=layer))
    ours = BLOCK_HOOKS.get(hook) or _MORE_HOOKS.get(hook)
    if ours is None:
        near = did_you_mean(f"blocks.0.{hook}", _all_hooks()).replace(
            "blocks.0.", f"blocks.{layer}."
        )
        raise _refused(name, f"no hook of TransformerLens that is known here.{near}")
    streams = ("hook_resid_mid", "hook_resid_post", "hook_out")
    if hook in streams and _POST_NORM.match(architecture):
        raise _refused(
            name,
            f"in a {architecture} it is the sum before the norm on the residual stream, which is "
            f"the output of no module; {ours}.{layer} is after that norm",
        )
    return f"{ours}.{layer}"


def _all_hooks() -> list[str]:
    return [f"blocks.0.{hook}" for hook in (*BLOCK_HOOKS, *_MORE_HOOKS, *_REFUSED)]


def _refused(name: str, what: str) -> HookpointError:
    return HookpointError(
        f"{name!r} is a name of TransformerLens: {what}. docs/hookpoints.md has the table.",
        hookpoint=name,
    )


def module_place(name: str) -> ModulePlace | None:
    """Return the module and the side that a path of nnsight means; None for other names.

    Parameters
    ----------
    name : str
        The path: ``model.layers[3].output[0]``, ``transformer.h.3.input``, ``layers[3]``.

    Raises
    ------
    HookpointError
        It is another part of a module's output than the first, or of its input.

    Examples
    --------
    >>> module_place("model.layers[3].output[0]")
    ModulePlace(paths=('model.layers.3', 'layers.3'), side='output')
    """
    path = _INDEX.sub(lambda found: "." + found[1].replace(":", "*"), name)
    side: Side = "output"
    if match := _SIDE.fullmatch(path):
        path, rest = match[1], match[3].removeprefix(".")
        side = "output" if match[2] == "output" else "input"
        if rest.replace(".0", "") not in ("", "0"):
            raise HookpointError(
                f"{name!r}: got part {rest!r} of the module's {match[2]}; a hookpoint is the first "
                f"tensor of a module's output or input. Expected {path}.{match[2]}, or the path of "
                "the module that computes that part.",
                hookpoint=name,
            )
    elif path == name and not name.startswith("model."):
        return None
    paths = [path]
    while paths[-1].startswith("model."):
        paths.append(paths[-1].removeprefix("model."))
    return ModulePlace(tuple(paths), side)


def stored_name(
    key: object, hookpoints: Sequence[HookpointSpec], architecture: str, n_layers: int
) -> str:
    """Return the name of a stored hookpoint that is asked for by any of its names.

    Parameters
    ----------
    key : str or tuple
        Our name (``.last`` and ``.middle`` too), a module's path, a name of TransformerLens or of
        nnsight, or a key of TransformerLens's cache: ``("resid_post", 3)``.
    hookpoints : sequence of HookpointSpec
        The stored hookpoints.
    architecture : str
        The model's class.
    n_layers : int
        The number of blocks.

    Raises
    ------
    HookpointError
        None of the stored hookpoints has this name. The message lists them.
    """
    names = [hookpoint.name for hookpoint in hookpoints]
    if key in names:
        return str(key)
    asked = _of_cache(key)
    ours = lens_name(asked, architecture) or asked
    stem, _, layer = ours.rpartition(".")
    if stem and layer in ("last", "middle"):
        ours = f"{stem}.{n_layers - 1 if layer == 'last' else n_layers // 2}"
    if ours in names:
        return ours
    places = {(each.module, each.side): each.name for each in hookpoints}
    if (ours, "output") in places:  # a path in which `output` may be the name of a module
        return places[ours, "output"]
    if (place := module_place(ours)) is not None:
        for path in place.paths:
            path = re.sub(r"\.-(\d+)\b", lambda found: f".{n_layers - int(found[1])}", path)
            if (path, place.side) in places:
                return places[path, place.side]
    what = f"hookpoint {key!r}" + (f", which is {ours} here" if ours != key else "")
    near = did_you_mean(ours, names)
    if (same := _same_numbers(ours)) in names:
        near = f" {same} has the same numbers."
    raise HookpointError(f"{what}: this store has {listed(names, 40)}.{near}", hookpoint=str(key))


def _of_cache(key: object) -> str:
    """Return a key of TransformerLens's cache as a name; other keys as text."""
    if isinstance(key, tuple) and len(key) in (2, 3) and isinstance(key[0], str):
        return f"{_SHORT.get(key[0], key[0])}.{key[1]}"
    if not isinstance(key, str):
        raise HookpointError(
            f"hookpoint: got {key!r:.100} ({type(key).__name__}), expected a name such as "
            "'resid_post.3'.",
            hookpoint=repr(key)[:100],
        )
    return key


def _same_numbers(name: str) -> str | None:
    """Return the other name of the residual stream between two blocks."""
    kind, _, layer = name.partition(".")
    if not layer.isdecimal():
        return None
    if kind == "resid_pre":
        return f"resid_post.{int(layer) - 1}"
    return f"resid_pre.{int(layer) + 1}" if kind == "resid_post" else None
