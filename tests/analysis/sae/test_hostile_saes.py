"""Autoencoders and masks that a stranger made: an error of ours, or the thing itself; never more
memory than the files could fill, never a hang, never code."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from actlas.analysis.localizer.masks import Mask, MaskKey
from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.saelens_format import load_sae, save_sae
from actlas.store.errors import MaskError, SaeError

pytestmark = pytest.mark.slow

LONG = os.environ.get("ACTLAS_CHAOS") == "long"
EXAMPLES = 4000 if LONG else 200
KINDS = ["relu", "topk", "jumprelu", "gated"]
MOST_BYTES = 50 << 20
NASTY: list[Any] = [
    *(0, -1, 1, 2, 7, 2**30, 2**31 - 1, 2**31, 2**62, 2**63, 10**30, 1e308, 0.5, None, True, False),
    *("", "topk", "gated", "relu", "false", "hook_z", "../../etc/passwd", "\x1b[2J", "a\0b"),
    *("x" * 10_000, [], {}, [1], {"k": 3}, {"k": 2**40}, [[[[]]]], float("nan"), float("inf")),
]
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=KINDS)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved") / "sae"
    k = 2 if request.param == "topk" else None
    sae = SparseAutoencoder(6, 10, kind=request.param, k=k, hookpoint="resid_post.1")
    save_sae(sae, folder, {})
    return folder


def loads_or_says_why(folder: Path) -> bool:
    """Load an autoencoder within a little memory; only a ``SaeError`` may come of it."""
    tracemalloc.start()
    try:
        sae = load_sae(folder)
        codes = sae.encode(torch.zeros(2, sae.d_in))
        assert codes.shape == (2, sae.d_sae)
        return True
    except SaeError:
        return False
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < MOST_BYTES


def test_any_field_of_a_configuration(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "cfg.json").read_text())
    names = [*config, "activation_fn", "activation_fn_kwargs", "hook_name", "model_name", "dtype"]
    names += ["metadata.hook_name", "metadata.model_name", "finetuning_scaling_factor"]
    seen = {True: 0, False: 0}

    @SETTINGS
    @given(
        st.lists(st.tuples(st.sampled_from(names), st.sampled_from(NASTY)), min_size=1, max_size=3)
    )
    def check(changes: list[tuple[str, Any]]) -> None:
        body = copy.deepcopy(config)
        for name, value in changes:
            head, _, tail = name.partition(".")
            if tail and isinstance(body.get(head), dict):
                body[head][tail] = copy.deepcopy(value)
            else:
                body[head] = copy.deepcopy(value)
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        (folder / "cfg.json").write_text(json.dumps(body))
        (folder / "sae_weights.safetensors").unlink(missing_ok=True)
        os.link(saved / "sae_weights.safetensors", folder / "sae_weights.safetensors")
        seen[loads_or_says_why(folder)] += 1

    check()
    assert min(seen.values()) > 0, seen


def with_header(data: bytes, header: dict[str, Any], body: bytes | None = None) -> bytes:
    (n,) = struct.unpack("<Q", data[:8])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (data[8 + n :] if body is None else body)


def test_any_field_of_a_weights_header(saved: Path, tmp_path: Path) -> None:
    data = (saved / "sae_weights.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    tensors = [name for name in header if name != "__metadata__"]
    nasty = [*NASTY, [6, 10], [2**31, 2**31], [0], [-1], "F8_E4M3", "I64", "C64", "BOOL", [0, 8]]
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / "cfg.json").write_bytes((saved / "cfg.json").read_bytes())

    @SETTINGS
    @given(
        st.sampled_from(tensors),
        st.sampled_from(["shape", "dtype", "data_offsets", "other"]),
        st.sampled_from(nasty),
        st.sampled_from([0, 1, 100]),
    )
    def check(name: str, field: str, value: Any, cut: int) -> None:
        changed = copy.deepcopy(header)
        changed[name][field] = copy.deepcopy(value)
        body = data[8 + n : len(data) - cut]
        (folder / "sae_weights.safetensors").write_bytes(with_header(data, changed, body))
        loads_or_says_why(folder)

    check()


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool, torch.int64])
def test_weights_that_are_no_real_numbers(saved: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    sae = load_sae(saved)
    (tmp_path / "cfg.json").write_bytes((saved / "cfg.json").read_bytes())
    tensors = {name: p.detach().to(dtype) for name, p in sae.named_parameters()}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SaeError, match=r"has dtype|cannot hold"):
        load_sae(tmp_path)


def test_sizes_that_the_file_cannot_hold(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "cfg.json").read_text())
    (tmp_path / "sae_weights.safetensors").write_bytes(
        (saved / "sae_weights.safetensors").read_bytes()
    )
    for d_in, d_sae in ((2**20, 2**20), (2**31 - 1, 1), (6, 2**31 - 1), (2**15, 2**15)):
        (tmp_path / "cfg.json").write_text(json.dumps({**config, "d_in": d_in, "d_sae": d_sae}))
        assert not loads_or_says_why(tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_what_is_no_file_is_not_opened(saved: Path, tmp_path: Path, name: str) -> None:
    """A pipe would be waited for for ever; this test would then be killed."""
    for kind in ("pipe", "folder", "zero", "loop", "none"):
        folder = tmp_path / kind
        folder.mkdir()
        for path in saved.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / name).unlink()
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        elif kind != "none":
            (folder / name).symlink_to("/dev/zero" if kind == "zero" else folder / name)
        with pytest.raises(SaeError):
            load_sae(folder)


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_deep_configurations(saved: Path, tmp_path: Path, depth: int) -> None:
    (tmp_path / "cfg.json").write_text('{"a":' + "[" * depth + "]" * depth + "}")
    with pytest.raises(SaeError):
        load_sae(tmp_path)


def test_pickled_weights_are_not_looked_at(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_bytes((saved / "cfg.json").read_bytes())
    for name in ("sae_weights.pt", "sae_weights.bin", "pytorch_model.bin", "ae.pt"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    with pytest.raises(SaeError, match=r"no sae_weights\.safetensors"):
        load_sae(tmp_path)


# Masks


@pytest.fixture(scope="module")
def mask() -> Mask:
    spec = {"module": "layers.0", "side": "output", "width": 32}
    hookpoints = [{"name": f"resid_post.{i}", **spec} for i in range(3)]
    text = dict.fromkeys(
        ("model_id", "weights_sha256", "config_sha256", "architecture", "compute_dtype"), "x"
    ) | dict.fromkeys(("tokenizer_sha256", "stimuli", "stimuli_sha256", "long"), "x")
    more = {"text_field": None, "label_field": None, "lowercase": False, "max_length": 12}
    key = MaskKey.model_validate(
        {
            **text,
            **more,
            **{"revision": None, "d_model": 32, "n_layers": 3, "keep_special": False},
            **{"store_dtype": "float32", "plan_sha256": "x", "hookpoints": hookpoints},
            **{"positive": "S", "negative": "N", "pool": "last", "signed": False, "top": "1%"},
            "versions": {},
        }
    )
    return Mask(key, {"resid_post.0": (1, 2), "resid_post.2": (0,)})


def sealed(record: Any) -> bytes:
    body = json.dumps(record).encode()
    return b'{"record":%s,"sha256":"%s"}\n' % (body, hashlib.sha256(body).hexdigest().encode())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict | list):
        steps = value if isinstance(value, dict) else range(len(value))
        for step in steps:
            yield from places(value[step], (*at, step))


def test_any_field_of_a_mask(mask: Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "mask.json")
    record = json.loads((tmp_path / "mask.json").read_bytes())["record"]
    sites = list(places(record))
    nasty = [*NASTY, [-1], [2**31], [5, 1], [1, 1], [31], [32], list(range(32)), ["1"]]
    seen = {True: 0, False: 0}

    @SETTINGS
    @example(("key", "positive"), "\x1b[2J")
    @given(st.sampled_from(sites), st.sampled_from(nasty))
    def check(at: tuple[Any, ...], value: Any) -> None:
        body = copy.deepcopy(record)
        inside = body
        for step in at[:-1]:
            inside = inside[step]
        inside[at[-1]] = copy.deepcopy(value)
        (tmp_path / "mask.json").write_bytes(sealed(body))
        tracemalloc.start()
        try:
            found = Mask.load(tmp_path)
            assert "\x1b" not in repr(found)
            found.selected(), found.empty(), found.random(1), found._repr_html_()
            seen[True] += 1
        except MaskError:
            seen[False] += 1
        finally:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert most < MOST_BYTES

    check()
    assert min(seen.values()) > 0, seen


def test_masks_over_more_units_than_there_are(mask: Mask, tmp_path: Path) -> None:
    mask.save(tmp_path / "mask.json")
    record = json.loads((tmp_path / "mask.json").read_bytes())["record"]
    wide = {**record["key"]["hookpoints"][0], "width": 2**20}
    record["key"]["hookpoints"] = [{**wide, "name": f"h{i}"} for i in range(4000)]
    record["units"] = {}
    (tmp_path / "mask.json").write_bytes(sealed(record))
    with pytest.raises(MaskError, match="at most"):
        Mask.load(tmp_path)


def test_masks_that_are_no_files(mask: Mask, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", tmp_path / "loop", Path("/dev/zero")):
        with pytest.raises(MaskError):
            Mask.load(path)
