"""Train ``actlas-6m`` on a CPU.

Run ``python -m actlas_6m.train --data DATA --out DIR``. To begin the decay
before the planned step, write the number of decay steps into ``DIR/decay-now``. ``--resume``
goes on from ``DIR/checkpoint.pt``; the text is read again, so keep the environment as it is.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actlas_6m.data import (
    CONTEXT,
    EncodedDocument,
    TrainingText,
    as_transformers,
    documented_packages,
    encode_documents,
    epoch_tokens,
    fit_tokenizer,
    load_training_text,
)
from actlas_6m.evaluate import bits_per_byte
from actlas_6m.llama import (
    HEAD_DIM,
    ROTARY_THETA,
    dropout_masks,
    new_model,
    next_token_loss,
    rotary_tables,
)
from actlas_6m.optim import Muon, Schedule


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the result, apart from the text."""

    seed: int = 0
    n_steps: int = 3_000
    n_warmup: int = 60
    n_decay: int = 500
    batch_tokens: int = 8_192
    stable_context: int = 256
    docs_share: float = 0.38
    dropout: float = 0.05
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.05
    adam_lr: float = 0.002
    max_grad_norm: float = 1.0


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    epoch: int = 0
    offset: int = 0
    """Tokens of the epoch already seen."""
    decay_start: int | None = None
    n_decay: int | None = None


class Data:
    """Batches by (epoch, offset)."""

    def __init__(
        self, english: list[EncodedDocument], docs: list[EncodedDocument], recipe: Recipe
    ) -> None:
        self.english, self.docs, self.recipe = english, docs, recipe

    def batches(self, progress: Progress) -> Iterator[Tensor]:
        """Yield flat batches of tokens for ever, moving ``progress`` on."""
        size = self.recipe.batch_tokens
        while True:
            tokens = epoch_tokens(
                self.english,
                self.docs,
                docs_share=self.recipe.docs_share,
                seed=self.recipe.seed,
                epoch=progress.epoch,
            )
            while progress.offset + size <= len(tokens):
                start = progress.offset
                progress.offset += size
                yield torch.from_numpy(tokens[start : start + size])
            progress.epoch, progress.offset = progress.epoch + 1, 0


def text_tokenizer(text: TrainingText, seed: int) -> Tokenizer:
    """Fit the tokenizer on twice the English and a sample of the documentation."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(text.documentation))[:10_000]
    return fit_tokenizer([*text.english, *text.english, *(text.documentation[i] for i in chosen)])


class Trainer:
    """Model, optimizers and progress: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
        self.recipe, self.tokenizer, self.out = recipe, tokenizer, out
        self.model = new_model(recipe.seed)
        self.progress = Progress()
        self.generator = torch.Generator().manual_seed(recipe.seed + 1)
        embedding = self.model.model.embed_tokens.weight
        others = [p for p in self.model.parameters() if p is not embedding]
        matrices = [p for p in others if p.ndim == 2]
        vectors = [p for p in others if p.ndim == 1]
        self.muon = Muon(matrices, recipe.muon_lr, weight_decay=recipe.muon_weight_decay)
        self.adam = torch.optim.AdamW(
            [embedding, *vectors], recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.rotary = rotary_tables(CONTEXT, HEAD_DIM, ROTARY_THETA)
        self.loss: Callable[..., Tensor] = torch.compile(next_token_loss, dynamic=False)

    def schedule(self) -> Schedule:
        """Return the schedule as it stands; the file ``decay-now`` begins the decay now."""
        progress, recipe = self.progress, self.recipe
        request = self.out / "decay-now"
        if progress.decay_start is None:
            if request.exists():
                progress.n_decay = int(request.read_text().strip() or recipe.n_decay)
                progress.decay_start = progress.step
            elif progress.step >= recipe.n_steps - recipe.n_decay:
                progress.decay_start, progress.n_decay = progress.step, recipe.n_decay
        start = progress.decay_start
        return Schedule(
            recipe.n_warmup,
            recipe.n_steps - recipe.n_decay if start is None else start,
            recipe.n_decay if progress.n_decay is None else progress.n_decay,
        )

    def step(self, tokens: Tensor, factor: float) -> float:
        """Take one optimizer step; return the loss in nats per token."""
        decaying = self.progress.decay_start is not None
        context = CONTEXT if decaying else self.recipe.stable_context
        tokens = tokens.view(-1, context)
        config = self.model.config
        shape = (2 * config.num_hidden_layers, len(tokens), config.hidden_size)
        masks = dropout_masks(shape, self.recipe.dropout, self.generator)
        loss = self.loss(self.model, tokens, masks, self.rotary)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.muon.param_groups[0]["lr"] = self.recipe.muon_lr * factor
        self.adam.param_groups[0]["lr"] = self.recipe.adam_lr * factor
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write ``checkpoint.pt``, then the model as transformers reads it under ``export``."""
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "generator": self.generator.get_state(),
            "progress": asdict(self.progress),
        }
        staged = self.out / "checkpoint.tmp"
        torch.save(state, staged)
        staged.replace(self.out / "checkpoint.pt")
        export = copy.deepcopy(self.model)
        for parameter in export.parameters():
            parameter.data = parameter.data.bfloat16()
        export.config.dtype = torch.bfloat16
        export.save_pretrained(self.out / "export")

    def load(self) -> None:
        """Take up ``checkpoint.pt``."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["generator"])
        self.progress = Progress(**state["progress"])


def train(trainer: Trainer, data: Data, held_out: list[str], every: int, save_every: int) -> None:
    """Run to the schedule's end; every ``every`` steps a line goes to ``loss.csv``."""
    losses: list[float] = []
    began = time.monotonic()
    with (trainer.out / "loss.csv").open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(["step", "tokens", "train_loss_nats", "held_out_bits_per_byte"])
        for tokens in data.batches(trainer.progress):
            schedule = trainer.schedule()
            losses.append(trainer.step(tokens, schedule.factor(trainer.progress.step)))
            step, last = trainer.progress.step, trainer.progress.step >= schedule.n_steps
            if step % every == 0 or last:
                bits = bits_per_byte(trainer.model, trainer.tokenizer, held_out)
                mean = sum(losses) / len(losses)
                n_tokens = step * trainer.recipe.batch_tokens
                writer.writerow([step, n_tokens, f"{mean:.4f}", f"{bits:.4f}"])
                file.flush()
                seconds = time.monotonic() - began
                print(f"{step}/{schedule.n_steps} {seconds:.0f}s {mean:.3f} {bits:.4f}", flush=True)
                losses.clear()
            if step % save_every == 0 or last:
                trainer.save()
            if last:
                return


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the text, then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the text collections")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, loss.csv, export/")
    parser.add_argument("--steps", type=int, default=Recipe().n_steps, help="steps, decay included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    export = options.out / "export"
    export.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed=options.seed, n_steps=options.steps)
    text = load_training_text(options.data)
    (options.out / "packages.txt").write_text(", ".join(documented_packages()) + "\n")
    if not options.resume:
        as_transformers(text_tokenizer(text, recipe.seed)).save_pretrained(export)
    fitted = Tokenizer.from_file(str(export / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=False)
    trainer = Trainer(recipe, tokenizer, options.out)
    if options.resume:
        trainer.load()
    english = encode_documents(text.english, fitted)
    data = Data(english, encode_documents(text.documentation, fitted), recipe)
    train(trainer, data, text.held_out, every=50, save_every=150)


if __name__ == "__main__":
    main()
