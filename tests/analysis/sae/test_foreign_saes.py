"""Autoencoders of other activations are refused or told by field; other folders by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from support.features import made_store
from support.stores import plan_for, words_columns

from actlas.analysis.sae.differences import differences
from actlas.analysis.sae.foreign import KINDS
from actlas.analysis.sae.model_names import plain_name
from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.trained_on import FIELDS, NOT_COMPARED
from actlas.jobs.cli.app import cli
from actlas.store.errors import EXIT_USAGE, SaeError
from actlas.store.store import Store
from actlas.store.voice import shell

HOOK = "resid_post.0"
OLD = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.0.hook_resid_post",
    "hook_point_layer": 0,
    "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext",
    "context_size": 128,
    "prepend_bos": True,
    "lr": 4e-4,
}
"""The fields of a ``cfg.json`` of before SAELens 3, such as those of gpt2-small-res-jb."""


MODEL = {
    **{"id": "made/up-2b", "revision": "1" * 40, "architecture": "GPT2LMHeadModel"},
    **{"weights_sha256": "0" * 64, "config_sha256": "1" * 64, "d_model": 24, "n_layers": 2},
    **{"context_length": 512, "causal": True, "compute_dtype": "float32"},
}
NO_BOS = {"id": "t", "sha256": "2" * 64, "vocab_size": 30_000, "prefix_ids": (), "suffix_ids": ()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("foreign") / "s.zarr"
    return made_store(path, n_documents=6, model=MODEL, tokenizer=NO_BOS)


def saved(folder: Path, old: bool = False, **fields: Any) -> Path:
    """An autoencoder as SAELens writes it: its training is in the metadata, or at the top."""
    config: dict[str, Any] = {"architecture": "standard", "d_in": 24, "d_sae": 16}
    if old:
        config |= {name: value for name, value in {**OLD, **fields}.items() if value != "absent"}
    else:
        known = {"model_name": "up-2b", "hook_name": "blocks.0.hook_resid_post"}
        config["metadata"] = {"sae_lens_version": "6.54.12", **known, **fields}
    weights = {"W_enc": torch.ones(24, 16), "W_dec": torch.ones(16, 24)}
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(
        weights | {"b_enc": torch.zeros(16), "b_dec": torch.zeros(24)},
        folder / "sae_weights.safetensors",
    )
    return folder


def encode(store: Store, folder: Path, name: str, *more: str) -> Result:
    words = ("sae", "encode", store.path, "--sae", str(folder), "--name", name, "--threads", "1")
    return CliRunner().invoke(cli, [*words, "--device", "cpu", *more])


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("hook_name", {"hook_name": "blocks.0.attn.hook_pattern"}),
    ("hook_layer", {"hook_layer": 3}),
    ("hook_head_index", {"hook_head_index": 2}),
    ("hook_name_out", {"hook_name_out": "blocks.0.hook_mlp_out"}),
    ("model_weights_sha256", {"model_weights_sha256": "1" * 64}),
    (
        "model_from_pretrained_kwargs",
        {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    ),
    ("model_from_pretrained_kwargs", {"model_from_pretrained_kwargs": {"checkpoint_index": 3}}),
    ("model_from_pretrained_kwargs", {"model_from_pretrained_kwargs": {"revision": "step3000"}}),
    ("model_name", {"model_name": "gpt2-small"}),
]
TOLD: list[tuple[str, dict[str, Any]]] = [
    ("prepend_bos", {"prepend_bos": True}),
    ("context_size", {"context_size": 2}),
    ("seqpos_slice", {"seqpos_slice": [5, -5]}),
    ("model_class_name", {"model_class_name": "HookedFancy"}),
    ("model_from_pretrained_kwargs", {"model_from_pretrained_kwargs": {"load_in_4bit": True}}),
    ("model_from_pretrained_kwargs", {"model_from_pretrained_kwargs": {"fold_ln": True}}),
    ("model_from_pretrained_kwargs", {"model_from_pretrained_kwargs": {"dtype": "float16"}}),
    ("not compared", {"a_field_of_next_year": 1}),
]
SAME: list[dict[str, Any]] = [
    {"model_from_pretrained_kwargs": {"center_writing_weights": False}},
    {"model_from_pretrained_kwargs": {"dtype": "float32", "n_devices": 1, "revision": "1" * 40}},
    {"seqpos_slice": [None], "context_size": 1 << 20, "hook_head_index": None, "hook_layer": 0},
    {"dataset_path": "x", "neuronpedia_id": "y", "exclude_special_tokens": True},
    {"hook_name": "blocks.1.hook_resid_pre", "hook_layer": 1},
]


@pytest.mark.parametrize(("field", "fields"), REFUSED)
def test_rows_of_another_tensor_are_refused(
    store: Store, tmp_path: Path, field: str, fields: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "sae", **fields)
    result = encode(store, folder, "refused", "--hookpoint", HOOK)
    assert result.exit_code == EXIT_USAGE, result.output
    assert field in result.stderr and f"--accept {field}" in result.stderr
    assert not (Path(store.path) / "ledger/features/refused.json").exists()
    name = f"accepted-{field}-{tmp_path.name[-20:]}"
    accepted = encode(store, folder, name, "--hookpoint", HOOK, "--accept", field)
    assert accepted.exit_code == 0, accepted.output
    assert field in accepted.stderr or field == "hook_name"
    assert encode(store, folder, name, "--hookpoint", HOOK).exit_code == 0  # begun: it continues


@pytest.mark.parametrize(("field", "fields"), TOLD)
def test_rows_of_another_distribution_are_told(
    store: Store, tmp_path: Path, field: str, fields: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "sae", **fields)
    result = encode(store, folder, f"told-{tmp_path.name[-20:]}")
    assert result.exit_code == 0, result.output
    assert f"{folder}: {field}" in result.stderr


@pytest.mark.parametrize("fields", SAME)
def test_what_changes_nothing_is_not_told(
    store: Store, tmp_path: Path, fields: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "sae", prepend_bos=False, **fields)
    result = encode(store, folder, f"same-{tmp_path.name[-20:]}")
    assert result.exit_code == 0, result.output
    assert str(folder) not in result.stderr


@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ({"id": "/models/it", "revision": None}, False),
        ({"id": "builtin:actlas-6m", "revision": None}, True),
        ({"id": "gpt2", "untrained_seed": 3}, True),
    ],
)
def test_models_that_no_name_tells(model: dict[str, Any], refused: bool) -> None:
    """A folder may have any name; weights that are random are no published model's."""
    plan = plan_for(words_columns(0, 2, 5), model={**MODEL, **model})
    [found] = differences({"model_name": "gpt2-small"}, plan, HOOK)
    assert (found.field, found.refused) == ("model_name", refused)


def test_norms_decide_what_centred_weights_change() -> None:
    """TransformerLens centres the weights of models with LayerNorm alone, and no hidden units."""
    columns = words_columns(0, 2, 5)
    known = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    for architecture, hookpoint, refused in (
        ("GPTNeoXForCausalLM", "attn_out.1", True),
        ("GPTNeoXForCausalLM", "layers.1", True),
        ("GPTNeoXForCausalLM", "mlp_hidden.1", False),
        ("LlamaForCausalLM", "resid_post.1", False),
    ):
        plan = plan_for(columns, model={**MODEL, "architecture": architecture})
        assert [each.refused for each in differences(known, plan, hookpoint)] == [refused]


def test_the_configurations_of_before_version_6(store: Store, tmp_path: Path) -> None:
    """gpt2-small-res-jb: fields at the top under their first names, centred weights, BOS."""
    centred = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = saved(tmp_path / "sae", old=True, model_name="up-2b", **centred)
    loaded = load_sae(folder)
    assert loaded.hookpoint == HOOK and loaded.trained_on["hook_layer"] == 0
    assert "lr" not in loaded.trained_on
    result = encode(store, folder, "old")
    assert result.exit_code == EXIT_USAGE and "center_writing_weights" in result.stderr
    folder = saved(tmp_path / "sae", old=True, model_name="up-2b", prepend_bos="absent")
    result = encode(store, folder, "old")  # SAELens takes true where it is missing
    assert result.exit_code == 0 and f"{folder}: prepend_bos: " in result.stderr


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type(tmp_path: Path, field: str) -> None:
    for old in (False, True):
        folder = saved(tmp_path / "sae", old=old, **{field: [{}] if field == "x" else {1.5: "a"}})
        if field == "model_from_pretrained_kwargs":
            folder = saved(tmp_path / "sae", old=old, **{field: "all"})
        with pytest.raises(SaeError, match=f"{field} is "):
            load_sae(folder)


def test_tensors_that_no_such_architecture_has(tmp_path: Path) -> None:
    """SAELens refuses them too; a scaling factor of 1 is what its first versions wrote."""
    from safetensors.torch import load_file

    folder = saved(tmp_path / "sae")
    weights = load_file(folder / "sae_weights.safetensors")
    for name, value, loads in (
        ("scaling_factor", torch.ones(16), True),
        ("scaling_factor", torch.full((16,), 2.0), False),
        ("W_skip", torch.ones(24, 24), False),
    ):
        save_file({**weights, name: value}, folder / "sae_weights.safetensors")
        if loads:
            load_sae(folder)
            continue
        with pytest.raises(SaeError, match=f"{name} .*which no relu has"):
            load_sae(folder)


def test_an_unknown_field_to_accept(store: Store, tmp_path: Path) -> None:
    result = encode(store, saved(tmp_path / "sae"), "x", "--accept", "model_nam")
    assert result.exit_code == EXIT_USAGE and "got 'model_nam', expected fields" in result.stderr


def test_every_field_of_saelens_is_decided() -> None:
    """All fields that SAELens's own list of metadata and its training runner write."""
    sae_lens = pytest.importorskip("importlib.util").find_spec("sae_lens")
    if sae_lens is None:
        pytest.skip("sae-lens is an optional extra: pip install .[saelens]")
    root = Path(sae_lens.origin).parent
    source = (root / "loading/pretrained_sae_loaders.py").read_text()
    names = set(json.loads("[" + between(source, "LLM_METADATA_KEYS = {", ",\n}") + "]"))
    runner = (root / "llm_sae_training_runner.py").read_text()
    names |= {line.split()[0] for line in runner.split("self.sae.cfg.metadata.")[1:]}
    assert len(names) > 15 and {"center_writing_weights"}.isdisjoint(names)
    assert names - FIELDS.keys() - NOT_COMPARED == set()
    page = (Path(__file__).parents[3] / "docs/sae.md").read_text()
    assert [name for name in (*FIELDS, *NOT_COMPARED) if f"`{name}`" not in page] == []


def between(text: str, start: str, stop: str) -> str:
    return text.split(start)[1].split(stop)[0]


@pytest.mark.parametrize(
    ("short", "hub"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("pythia-125m", "EleutherAI/pythia-160m"),
        ("gemma-2b", "google/gemma-2b"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("Llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf"),
        ("meta-llama/Llama-3.1-8B", "unsloth/Llama-3.1-8B"),
    ],
)
def test_names_of_models(short: str, hub: str) -> None:
    assert plain_name(short) == plain_name(hub) != plain_name("gpt2-medium")


FOREIGN: list[tuple[str, dict[str, Any], str]] = [
    ("sparsify", {"cfg.json": {"num_latents": 8}, "sae.safetensors": ""}, "sparsify_disk_loader"),
    (
        "sparsify",
        {"cfg.json": {"num_latents": 0, "expansion_factor": 32, "normalize_decoder": True}},
        "sparsify_disk_loader",
    ),
    ("dictionary_learning", {"config.json": {"trainer": {}}, "ae.pt": ""}, "pickle"),
    (
        "dictionary_learning",
        {"config.json": {"trainer": {"dict_class": "AutoEncoderTopK"}}},
        "from_pretrained",
    ),
    ("Gemma Scope ", {"params.npz": ""}, "from_pretrained"),
    (
        "Gemma Scope 2",
        {"config.json": {"architecture": "jump_relu"}, "params.safetensors": ""},
        "from_pretrained",
    ),
    (
        "Llamascopium",
        {"config.json": {"sae_type": "sae"}, "sae_weights.safetensors": ""},
        "save_inference_model",
    ),
    ("Llama Scope", {"hyperparams.json": {}, "checkpoints/final.safetensors": ""}, "SAELens"),
    ("transcoders", {"config.yaml": "", "layer_0.safetensors": ""}, "one hookpoint"),
    ("a transformers model", {"config.json": {"model_type": "gpt2"}}, "actlas sae train"),
    ("a store of activations", {"zarr.json": {}}, "sparse autoencoder"),
    ("actlas localize", {"mask.json": {}}, "ablate"),
    ("pickled weights", {"model.pt": ""}, "library that saved it"),
    ("training checkpoint of SAELens", {"cfg.json": {}, "trainer_state.pt": ""}, "output_path"),
]


def written(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(("name", "files", "remedy"), FOREIGN)
def test_folders_of_others_are_named(
    tmp_path: Path, store: Store, name: str, files: dict[str, Any], remedy: str
) -> None:
    folder = written(tmp_path / "it", files)
    with pytest.raises(SaeError) as caught:
        load_sae(folder)
    with shell():
        assert name in str(caught.value) and remedy in str(caught.value)
    result = encode(store, folder, "foreign")
    assert result.exit_code == EXIT_USAGE and name in result.stderr
    if "zarr.json" not in files and "mask.json" not in files:
        result = CliRunner().invoke(cli, ["verify", str(folder)])
        assert result.exit_code == EXIT_USAGE and name in result.stderr
    above = written(tmp_path / "above", {f"layer_3/width_16k/{n}": c for n, c in files.items()})
    with pytest.raises(SaeError, match=r"folders below it have autoencoders: layer_3/width_16k"):
        load_sae(above)
    for file in folder.rglob("*"):
        if file.is_file():
            with pytest.raises(SaeError, match="got a file"):
                load_sae(file)


def test_each_kind_is_tried() -> None:
    assert len({kind.what for kind in KINDS}) == len(KINDS)
    named = {kind.what for kind in KINDS for name, *_ in FOREIGN if name in kind.what}
    assert named == {kind.what for kind in KINDS}


@pytest.mark.parametrize("name", ["checkpoint.safetensors", ".checkpoint.safetensors.part"])
def test_a_half_trained_folder_says_what_finishes_it(
    tmp_path: Path, store: Store, name: str
) -> None:
    folder = written(tmp_path / "half", {name: ""})
    with pytest.raises(SaeError, match=r"Run the same `actlas\.train_sae` again"):
        load_sae(folder)
    result = encode(store, folder, "half")
    assert result.exit_code == EXIT_USAGE and "`actlas sae train` again" in result.stderr
