"""What a user may ask for: two strict, frozen models, one for the plan and one for the run.

:class:`PlanOptions` says what a row is; a store keeps them, and a later command that asks for
something else is refused. :class:`RunOptions` says how rows are made, and may change each time.
Unknown keys are refused. None means: decided from the model and the corpus, as described.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from actlas.store.format.dtypes import ActivationDtype
from actlas.store.format.schema import Compression, LongDocuments, Order, Pool


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanOptions(_Options):
    """What a row is: model, corpus, windows, order, what is stored."""

    model: str
    """A hub id, a local folder, or ``builtin:NAME``."""
    corpus: str
    """``hf:NAME[:SPLIT]``, ``builtin:NAME``, or a local file, folder or glob."""
    hookpoints: tuple[str, ...] = ("resid_post.*",)
    """Names, globs of names, or module paths; ``resid_post.middle`` and ``.last`` too."""
    tokenizer: str | None = None
    """Default: the model's own."""
    revision: str | None = None
    """Of a model on the hub: a commit, tag or branch."""
    trust_remote_code: bool = False
    untrained: int | None = Field(default=None, ge=0, lt=2**63)
    """Fresh weights of this seed in the model's shape, instead of its own."""
    text_field: str | None = None
    """Default: ``text``. A range of columns (``stim2:stim13``) is joined with spaces."""
    label_field: str | None = None
    """A dotted path such as ``meta.pile_set_name``."""
    lowercase: bool = False
    messages_field: str | None = None
    """A list of messages with ``role`` and ``content``, laid out by the tokenizer's chat template;
    the row column ``role`` says whose a token is."""
    span_fields: tuple[str, ...] = ()
    """Fields that label parts of the text: lists of ``{start, stop, label}`` in characters. Each
    becomes a row column of its name."""
    image_field: str | None = None
    """A path, or the bytes, of an image: beside the text where the model reads both."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Stop after the whole document that reaches this many kept tokens. Default: all."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens of a window, special ones included. Default: the model's context, at most 1,024."""
    long: LongDocuments | None = None
    """Longer documents: consecutive windows, or cut. Default: window; truncate with labels."""
    order: Order | None = None
    """Default: shuffled; corpus with labels."""
    sample: Literal["uniform", "head"] | None = None
    """Which documents, under max_tokens: uniform reads the whole corpus, head its beginning.
    Default: uniform for local files, head for streams and for corpus order."""
    pool: tuple[Pool, ...] = ()
    """One row per document too: its last kept token's, or the mean or the sum over all."""
    pooled_only: bool = False
    """Store no token's activations, only the pooled ones."""
    with_loss: bool = False
    """Store the loss of the next token for every row. The whole model is run."""
    keep_special: bool = False
    """Give the tokenizer's own special tokens rows too."""
    dtype: ActivationDtype = "bfloat16"
    """What is stored."""
    model_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What computes. Default: the checkpoint's."""
    compression: Compression = "dense"
    """Of the stored activations: ``dense`` is smaller and faster to read than ``fast``, which is
    cheaper to write; ``none`` is a raw array."""
    shard_rows: int | None = Field(default=None, ge=16, le=1 << 24)
    """A power of two. Default: 65,536 halved until a shard fits memory and there are 16."""
    seed: int = Field(default=0, ge=0, lt=2**63)


class RunOptions(_Options):
    """How rows are made: executor, workers, device, budgets. Free to change between runs."""

    executor: Literal["inline", "ray"] = "inline"
    workers: int | Literal["auto"] = 1
    """On Ray. A number: those that a cluster has no place for wait for one, which is what asks an
    autoscaler for machines. ``auto``: as many as the machines have room for, more as machines join
    and fewer as they leave; on a Ray of our own one per GPU, or one."""
    address: str | None = None
    """Of a Ray cluster (``auto`` finds a running one). Default: a local one is started."""
    model_path: str | None = None
    """Where to load the plan's model from, if it moved: its files must be the same."""
    allow_remote_code: bool = False
    """Run the Python code that comes with the model of a store planned with ``trust_remote_code``.
    A store may come from a stranger, so its plan alone allows nothing."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``. Default: the accelerator where there is one."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread the blocks over all GPUs of a worker, then its memory, then disk, by accelerate."""
    max_device_bytes: int | None = Field(default=None, gt=0)
    """Of weights on each device, with ``device_map``. Default: what is free."""
    offload_folder: str | None = None
    """Where ``device_map`` puts weights that fit nowhere else. Default: a temporary one."""
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Token budget of a forward pass: sequences times the longest, padding included. Default:
    2,048 on a CPU, where smaller passes stay in its caches; 8,192 elsewhere."""
    packing: Literal["auto", "padded", "packed"] = "auto"
    """Sequences padded to one length, or one behind the other with no token seeing another's."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each worker. Default: the machine's, divided by its workers."""
    cpus_per_worker: float = Field(default=1, ge=0)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """Default: 1 where the device is a GPU, else 0."""
    max_memory_bytes: int | None = Field(default=None, gt=0)
    """Of one worker. Default: what is free on its machine as it starts; and the workers of one
    machine must fit its memory together."""
    on_nonfinite: Literal["record", "refuse"] = "record"
    """NaN and infinity among the activations: counted and reported, or an error."""
    max_task_faults: int = Field(default=3, ge=1)
    """Exceptions that a shard may raise before it is put in quarantine."""
    max_process_deaths: int = Field(default=6, ge=1)
    max_node_losses: int = Field(default=20, ge=1)
    deadline_floor_s: float = Field(default=300, gt=0)
    """A shard may take ten times the running median, and never less than this. Before any is done,
    those that take longer are tried again uncharged, with 2, 4 and 8 times this."""
    start_limit_s: float = Field(default=1800, gt=0)
    """A worker may take this long to load its model, or ``deadline_floor_s`` if that is more."""
    writers_per_machine: int | None = Field(default=None, ge=1)
    """How many shards may be written at once by the workers of one machine. Default: any."""
    retry_quarantined: bool = False

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be greater than or equal to 1, or auto")
        return value

    @property
    def n_workers(self) -> int:
        """How many workers share this machine, as far as is known: 1 where that is ``auto``."""
        return self.workers if isinstance(self.workers, int) else 1
