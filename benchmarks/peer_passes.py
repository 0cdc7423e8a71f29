"""The same tokens through transformers alone, SAELens and dictionary_learning."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actlas.pipeline.extract.inputs import batch_inputs
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.device import to_device
from benchmarks.cases import Case, plan_case
from benchmarks.extraction import Timed

OURS = {"fast": "actlas, fast", "none": "actlas, none"}
CHECKOUT = "BENCH_DICTIONARY_LEARNING"


class Passes:
    """The same tokens through transformers alone, and through the installed peers."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.timed = {}
        for profile in OURS:
            where = folder / profile
            where.mkdir()
            planned = plan_case(case, where, compression=profile, model_dtype="float32")
            self.timed[profile] = Timed(case, planned)
        self.first = self.timed["fast"]
        own = self.first.extractor
        (self.hookpoint,) = own.plan.hookpoints
        self.layer = int(self.hookpoint.name.rpartition(".")[2])
        # actlas itself does not load blocks after the hookpoint; the peers need the whole model.
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            case.model, dtype=torch.float32
        ).eval()
        computed = own.plan.model.compute_dtype
        if computed != "float32":
            raise AssertionError(f"actlas computes in {computed}, its peers in float32")
        store = own.store
        self.tokens = store.documents.token_ids(0, self.first.n_rows)
        self.texts = [
            json.loads(line)["text"] for line in (folder / "fast" / "corpus.jsonl").open()
        ]
        self.context = min(case.max_length, len(self.tokens))
        self.n_sequences = len(self.tokens) // self.context
        self.per_batch = max(1, min(self.n_sequences, own.tokens_per_batch // self.context))
        self.n_sequences -= self.n_sequences % self.per_batch
        self.n_buffered = 0
        self.buffered: Any = None
        self.dataset: Any = None
        self.proxy: Any = None

    def _inputs(self) -> Iterator[Any]:
        own = self.first.extractor
        for _batch, inputs in batch_inputs(own.store, self.first.best, pad_id=own.pad_id):
            yield inputs, to_device(inputs.arrays, own.device)

    def full(self) -> None:
        with quiet(), torch.inference_mode():
            for _, given in self._inputs():
                self.model(**given, use_cache=False)

    def naive(self, dtype: torch.dtype) -> float:
        """Save the kept rows of each batch; return their bytes per token. Nothing is fsynced."""
        where = self.folder / "naive"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        n_rows = 0
        with quiet(), torch.inference_mode():
            for i, (inputs, given) in enumerate(self._inputs()):
                out = self.model(**given, use_cache=False, output_hidden_states=True)
                hidden = out.hidden_states[self.layer + 1]
                kept = hidden.reshape(-1, hidden.shape[-1])[torch.from_numpy(inputs.kept)]
                np.save(where / f"{i}.npy", kept.to(dtype).numpy())
                n_rows += len(kept)
        if n_rows != self.first.n_rows:
            raise AssertionError(f"the naive loop kept {n_rows} rows of {self.first.n_rows}")
        return _bytes(where) / n_rows

    def check_naive(self, _result: object) -> None:
        """Compare the first batch's saved rows with the hooked module's own output."""
        if self.layer + 1 == self.model.config.num_hidden_layers:
            return  # The last of transformers' hidden states is after the final norm.
        inputs, given = next(iter(self._inputs()))
        expected = _hooked(self.model, self.hookpoint.module, given)
        expected = expected.reshape(-1, expected.shape[-1])[torch.from_numpy(inputs.kept)]
        _agree("the naive loop", np.load(self.folder / "naive" / "0.npy"), expected)

    def sequences(self) -> torch.Tensor:
        """Return SAELens's input: concatenated documents, cut into sequences of one length."""
        n = self.n_sequences * self.context
        found = torch.from_numpy(self.tokens[:n].astype(np.int64))
        return found.reshape(self.n_sequences, self.context)

    def peer_forward(self) -> None:
        """Run SAELens's own batches as deep as the hookpoint; nothing is kept."""
        with quiet(), torch.inference_mode():
            for batch in self.sequences().split(self.per_batch):
                _stopped(self.model, self.hookpoint.module, batch)

    def prepare_saelens(self) -> None:
        """Load its model and build its dataset once, and make room for a new cache."""
        from datasets import Dataset
        from sae_lens.load_model import load_model

        if self.dataset is None:
            # Its own copy: it hooks every module.
            name, more = "AutoModelForCausalLM", {"dtype": torch.float32}
            self.proxy = load_model(name, self.case.model, "cpu", more)
            self.dataset = Dataset.from_dict({"input_ids": self.sequences().tolist()})
        shutil.rmtree(self.folder / "saelens", ignore_errors=True)

    def saelens(self) -> float:
        """Cache one hookpoint with the loaded model; return bytes per token."""
        from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

        where = self.folder / "saelens"
        n = self.n_sequences * self.context
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It counts sequences, not tokens.
            config = CacheActivationsRunnerConfig(
                dataset_path="given",
                model_name=self.case.model,
                model_class_name="AutoModelForCausalLM",
                model_batch_size=self.per_batch,
                hook_name=self.hookpoint.module,
                d_in=self.hookpoint.width,
                training_tokens=n,
                context_size=self.context,
                new_cached_activations_path=str(where),
                shuffle=False,
                dtype="float32",
                device="cpu",
                buffer_size_gb=(n * self.hookpoint.width * 4 + 1) / 1e9,
                prepend_bos=False,
            )
            with mock.patch("sae_lens.cache_activations_runner.load_model") as load:
                load.return_value = self.proxy
                runner = CacheActivationsRunner(config, override_dataset=self.dataset)
            found = runner.run()
        if len(found) != self.n_sequences:
            raise AssertionError(f"SAELens kept {len(found)} sequences of {self.n_sequences}")
        return _bytes(where) / n

    def check_saelens(self, _result: object) -> None:
        """Compare the first cached sequence with the hooked module's own output."""
        from datasets import load_from_disk

        first = load_from_disk(str(self.folder / "saelens"))[0]
        ids = self.sequences()[:1]
        if first["token_ids"] != ids[0].tolist():
            raise AssertionError("SAELens cached other tokens than it was given")
        expected = _hooked(self.model, self.hookpoint.module, {"input_ids": ids})[0]
        _agree("SAELens", np.asarray(first[self.hookpoint.module], np.float32), expected)

    def buffer(self) -> float:
        """Fill dictionary_learning's buffer once; nothing is written. Return bytes per token."""
        made = _dictionary_learning().ActivationBuffer(
            itertools.cycle(self.texts),
            self.model,
            self.model.get_submodule(self.hookpoint.module),
            d_submodule=self.hookpoint.width,
            n_ctxs=self.n_sequences,
            ctx_len=self.context,
            refresh_batch_size=self.per_batch,
            add_special_tokens=False,
        )
        computed: list[int] = []

        def count(_module: Any, _args: Any, given: dict[str, Any]) -> None:
            computed.append(int(given["attention_mask"].sum()))

        handle = self.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            made.refresh()
        finally:
            handle.remove()
        self.n_buffered = sum(computed)
        self.buffered = made
        return float(made.activations.nbytes / len(made.activations))

    def check_buffer(self, _result: object) -> None:
        """Compare the first document's rows with the hooked module's own output."""
        ids = self.buffered.tokenizer(
            self.texts[0],
            return_tensors="pt",
            max_length=self.context,
            truncation=True,
            add_special_tokens=False,
        )["input_ids"]
        expected = _hooked(self.model, self.hookpoint.module, {"input_ids": ids})[0]
        found = self.buffered.activations[: len(expected)]
        _agree("dictionary_learning", found.numpy(), expected[: len(found)])


class _StopError(Exception):
    pass


def _stopped(model: Any, module: str, batch: torch.Tensor) -> None:
    def stop(*_: Any) -> None:
        raise _StopError

    handle = model.get_submodule(module).register_forward_hook(stop)
    try:
        model(batch, use_cache=False)
    except _StopError:
        pass
    finally:
        handle.remove()


def _hooked(model: Any, module: str, given: dict[str, Any]) -> torch.Tensor:
    """Return the output of a module of the model; shape [sequences, positions, units]."""
    found: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    handle = model.get_submodule(module).register_forward_hook(keep)
    try:
        with quiet(), torch.inference_mode():
            model(**given, use_cache=False)
    finally:
        handle.remove()
    return found[0]


def _agree(who: str, found: np.ndarray, expected: torch.Tensor) -> None:
    """Check that values are equal up to the rounding of their dtype."""
    right = expected.float().numpy()
    if found.shape != right.shape:
        raise AssertionError(f"{who} has rows of shape {found.shape}, not {right.shape}")
    limit = (1e-4 if found.dtype == np.float32 else 2e-2) * float(np.abs(right).max())
    worst = float(np.abs(found.astype(np.float32) - right).max())
    if not worst <= limit:
        raise AssertionError(f"{who} is off by {worst}; at most {limit} is allowed")


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _dictionary_learning() -> Any:
    path = Path(os.environ[CHECKOUT]) / "dictionary_learning" / "pytorch_buffer.py"
    spec = importlib.util.spec_from_file_location("dictionary_learning_buffer", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{CHECKOUT}: no {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_saelens() -> bool:
    return importlib.util.find_spec("sae_lens") is not None
