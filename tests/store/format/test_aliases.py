"""Names of TransformerLens and nnsight are answered with ours, or refused with the right one."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from actlas.store.errors import HookpointError
from actlas.store.format.aliases import lens_name, module_place, stored_name
from actlas.store.format.schema import HookpointSpec

SPECS = tuple(
    HookpointSpec(name=name, module=module, side=side, width=8)
    for name, module, side in (
        ("embed", "model.embed_tokens", "output"),
        ("attn_z.3", "model.layers.3.self_attn.o_proj", "input"),
        ("resid_mid.3", "model.layers.3.post_attention_layernorm", "input"),
        ("resid_post.3", "model.layers.3", "output"),
        ("resid_post.5", "model.layers.5", "output"),
    )
)


def stored(key: object, architecture: str = "LlamaForCausalLM") -> str:
    return stored_name(key, SPECS, architecture, 6)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("resid_post.3", "resid_post.3"),
        ("resid_post.last", "resid_post.5"),
        ("resid_mid.middle", "resid_mid.3"),
        ("blocks.3.hook_resid_post", "resid_post.3"),
        ("blocks.3.hook_out", "resid_post.3"),
        ("blocks.3.hook_resid_mid", "resid_mid.3"),
        ("blocks.3.attn.hook_z", "attn_z.3"),
        ("hook_embed", "embed"),
        ("embed.hook_out", "embed"),
        (("resid_post", 3), "resid_post.3"),
        (("z", 3), "attn_z.3"),
        (("z", 3, "attn"), "attn_z.3"),
        ("model.layers.3", "resid_post.3"),
        ("model.layers[3]", "resid_post.3"),
        ("model.layers[-1].output", "resid_post.5"),
        ("model.layers.3.output", "resid_post.3"),
        ("model.layers[3].output[0]", "resid_post.3"),
        ("model.model.layers[3].output[0]", "resid_post.3"),
        ("model.layers[3].self_attn.o_proj.input", "attn_z.3"),
        ("model.layers[3].self_attn.o_proj.inputs[0][0]", "attn_z.3"),
    ],
)
def test_a_stored_hookpoint_is_found_by_any_of_its_names(key: object, ours: str) -> None:
    assert stored(key) == ours


def test_a_module_may_be_called_output() -> None:
    """The blocks of BERT have such modules."""
    path = "encoder.layer.3.output.dense"
    spec = HookpointSpec(name="mlp_out.3", module=path, side="output", width=8)
    assert stored_name(path, [spec], "BertModel", 6) == "mlp_out.3"
    assert stored_name(f"{path}.output", [spec], "BertModel", 6) == "mlp_out.3"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("resid_pots.3", "this store has embed.* Did you mean resid_post.3"),
        ("ResidPost.3", "Did you mean resid_post.3"),
        ("resid_pre.4", "resid_post.3 has the same numbers"),
        ("blocks.4.hook_resid_pre", "which is resid_pre.4 here.*resid_post.3 has the same"),
        ("blocks.3.attn.hook_q", r"before any rotary.*model\.layers\.3\.self_attn\.q_proj"),
        ("blocks.3.attn.hook_rot_k", "after the rotary embedding, which is the output of no"),
        ("blocks.3.attn.hook_pattern", "a number for each head, query and key"),
        ("blocks.3.mlp.hook_pre", r"mlp_hidden\.3 is hook_post"),
        ("blocks.3.hook_mlp_in", r"resid_mid\.3 in a sequential block"),
        ("blocks.3.attn.hook_out", r"attn_out\.3 is what is added"),
        ("blocks.3.ln1.hook_normalized", "before the norm's weights"),
        ("blocks.3.hook_residpost", r"Did you mean blocks\.3\.hook_resid_post"),
        ("hook_resid_post", r"write blocks\.L\.hook_resid_post, or blocks\.\*"),
        ("hook_pos_embed", r"resid_pre\.0 is the sum"),
        ("model.layers[3].output[1]", "got part '1' of the module's output"),
        (3, r"got 3 \(int\), expected a name such as 'resid_post.3'"),
    ],
)
def test_another_tensor_is_refused_with_the_right_name(key: object, says: str) -> None:
    with pytest.raises(HookpointError, match=says):
        stored(key)


@pytest.mark.parametrize(
    ("name", "architecture", "says"),
    [
        ("hook_embed", "Gemma2ForCausalLM", "resid_pre.0 is what enters the blocks"),
        ("hook_embed", "BloomForCausalLM", "scaled or normed"),
        ("blocks.1.hook_resid_post", "BertForMaskedLM", "resid_post.1 is after that norm"),
        ("blocks.1.hook_resid_mid", "XLMRobertaModel", "resid_mid.1 is after that norm"),
    ],
)
def test_what_a_hook_is_depends_on_the_model(name: str, architecture: str, says: str) -> None:
    with pytest.raises(HookpointError, match=says):
        lens_name(name, architecture)
    assert lens_name(name, "LlamaForCausalLM") is not None
    assert lens_name("blocks.1.hook_normalized_resid_post", architecture) == "resid_post.1"
    for first in ("ModernBert", "EuroBert", "MegatronBert", "RobertaPreLayerNorm", "XLMRobertaXL"):
        assert lens_name("blocks.1.hook_resid_mid", f"{first}Model") == "resid_mid.1", first


def test_globs_are_answered_with_globs_and_other_names_are_left_alone() -> None:
    assert lens_name("blocks.*.hook_resid_post") == "resid_post.*"
    for name in ("resid_post.3", "blocks.3.mlp", "transformer.blocks.3", "model.layers.*"):
        assert lens_name(name) is None
    assert module_place("resid_post.3") is None
    assert module_place("transformer.h[:].output") == (("transformer.h.*",), "output")


def test_every_hook_of_transformer_lens_is_answered_or_refused_with_a_reason() -> None:
    """Read from TransformerLens's own source, which is not imported."""
    found = importlib.util.find_spec("transformer_lens")
    if found is None or found.origin is None:
        pytest.skip("transformer_lens is not installed")
    components = Path(found.origin).parent / "components"
    inside = {
        "": ("transformer_block.py", "bert_block.py"),
        "attn.": ("abstract_attention.py", "attention.py", "grouped_query_attention.py"),
        "mlp.": ("mlps/mlp.py", "mlps/gated_mlp.py", "mlps/can_be_used_as_mlp.py"),
        "ln1.": ("layer_norm.py", "rms_norm.py", "layer_norm_pre.py"),
    }
    names = {
        f"blocks.0.{part}{hook}"
        for part, files in inside.items()
        for file in files
        for hook in hooks_of(components / file)
    }
    assert len(names) > 25
    unknown = []
    for name in sorted(names):
        try:
            assert lens_name(name) is not None, name
        except HookpointError as error:
            if "known here" in error.message:
                unknown.append(name)
    assert not unknown


def hooks_of(file: Path) -> set[str]:
    """Return the attributes of a file's modules that are hook points."""
    return {
        target.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if getattr(node.value.func, "id", "") == "HookPoint"
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
