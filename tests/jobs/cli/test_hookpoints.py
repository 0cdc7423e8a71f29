"""``actlas hookpoints``: what it lists is what a plan would take, and costs what a store costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner, Result
from support.architectures import TEXT, config_of
from support.reports import parsed

from actlas.jobs.cli.app import cli
from actlas.pipeline.model.config import quiet
from actlas.store.errors import EXIT_DONE, EXIT_USAGE


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["hookpoints", *(str(argument) for argument in arguments)])


def listing(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == EXIT_DONE, result.output
    return parsed("hookpoints", result.stdout)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models without any weights: a configuration is enough."""
    root = tmp_path_factory.mktemp("models")
    configs = {name: config_of(name) for name in ("llama", "neox", "mixtral", "clip")}
    with quiet():
        configs["jamba"] = transformers.JambaConfig(
            **TEXT,
            num_experts=4,
            attn_layer_period=3,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            use_mamba_kernels=False,
        )
        configs["resnet"] = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
        )
    architectures = {
        "llama": "LlamaForCausalLM",
        "neox": "GPTNeoXForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "jamba": "JambaForCausalLM",
    }
    for name, config in configs.items():
        config.architectures = [architectures[name]] if name in architectures else None
        config.save_pretrained(root / name)
    return {name: root / name for name in configs}


def test_all_names_with_widths_and_bytes(folders: dict[str, Path]) -> None:
    found = listing(folders["llama"])
    widths = {h["name"]: h["width"] for h in found["hookpoints"]}
    assert len(widths) == 1 + 7 * 3
    assert {name for name, width in widths.items() if width == 48} == {
        f"mlp_hidden.{layer}" for layer in range(3)
    }
    assert found["bytes_per_token"] == 2 * sum(widths.values()) == 2 * (19 * 32 + 3 * 48)
    assert found["absent"] == {}
    assert listing(folders["llama"], "--dtype", "float32")["bytes_per_token"] == 4 * 752


def test_a_person_reads_ranges_and_totals(folders: dict[str, Path]) -> None:
    lines = run(folders["llama"]).output.splitlines()
    row = next(line for line in lines if line.startswith("mlp_hidden"))
    assert re.split(" {2,}", row) == ["mlp_hidden.0 to mlp_hidden.2", "48", "288 B (3 x 96 B)"]
    assert lines[-1].split()[:4] == ["all", "22", "1.5", "kB;"]


def test_patterns_have_a_total_each_and_one_together(folders: dict[str, Path]) -> None:
    patterns = ["resid_post.*", "*.last", "model.layers.*.mlp.up_proj"]
    found = listing(folders["llama"], *patterns)
    assert [(p["pattern"], p["bytes_per_token"]) for p in found["patterns"]] == [
        ("resid_post.*", 3 * 64),
        ("*.last", 6 * 64 + 96),
        ("model.layers.*.mlp.up_proj", 3 * 96),
    ]
    assert found["bytes_per_token"] == 3 * 64 + (6 * 64 + 96) + 3 * 96 - 64  # one is in two
    assert len(found["hookpoints"]) == 3 + 7 + 3 - 1
    lines = run(folders["llama"], *patterns).output.splitlines()
    assert any(line.split()[:3] == ["*.last:", "7", "hookpoints"] for line in lines)


def test_what_is_not_there_is_listed_with_the_reason(folders: dict[str, Path]) -> None:
    assert (
        "resid_mid.0 to resid_mid.2: gpt_neox.layers.L is parallel" in run(folders["neox"]).output
    )
    assert (
        "mlp_hidden.0 to mlp_hidden.2: model.layers.L has a mix" in run(folders["mixtral"]).output
    )
    jamba = run(folders["jamba"]).output
    assert "attn_out.0, attn_out.2, attn_z.0, attn_z.2: model.layers.L has no attention" in jamba
    refused = run(folders["neox"], "resid_mid.last")
    assert refused.exit_code == EXIT_USAGE
    assert "is parallel" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_modules_are_listed_once_for_all_blocks(folders: dict[str, Path]) -> None:
    lines = run(folders["jamba"], "--modules").output.splitlines()
    assert ["model.layers.*.mamba.in_proj", "128", "2", "of", "3", "blocks"] in [
        x.split() for x in lines
    ]
    modules = {m["module"]: m["width"] for m in listing(folders["llama"], "--modules")["modules"]}
    assert modules["model.layers.2.self_attn.k_proj"] == 16
    assert modules["lm_head"] == 97
    assert "model.rotary_emb" not in modules
    assert listing(folders["llama"])["modules"] is None


def test_places_of_images_have_positions(folders: dict[str, Path]) -> None:
    found = {h["name"]: h for h in listing(folders["clip"])["hookpoints"]}
    assert (found["embed"]["layout"], found["embed"]["positions"]) == ("feature_map", 4)
    assert (found["attn_z.1"]["layout"], found["attn_z.1"]["positions"]) == ("positions", 5)
    resnet = run(folders["resnet"])
    assert resnet.exit_code == EXIT_DONE
    assert "no stack of blocks" in resnet.output
    assert "--modules lists" in resnet.output
    modules = {m["module"]: m for m in listing(folders["resnet"], "--modules")["modules"]}
    assert modules["encoder.stages.2"] == {
        "module": "encoder.stages.2",
        "width": 24,
        "positions": 196,
    }


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    for arguments in (
        (tmp_path / "nothing",),
        (tmp_path,),
        ("builtin:actlas-6m", "--dtype", "int8"),
        ("builtin:actlas-6m", "resid_pots.1"),
    ):
        assert run(*arguments).exit_code == EXIT_USAGE, arguments
    assert "Nearest: resid_post.1" in run("builtin:actlas-6m", "resid_pots.1").stderr
