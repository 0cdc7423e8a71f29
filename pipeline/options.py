"""Options of a plan and of a run: two strict, frozen models.

:class:`PlanOptions` defines what a row is; a store keeps these options, and a later command that
gives another value for one of them is refused. :class:`RunOptions` defines how rows are computed;
these may change from run to run. Unknown keys are refused. A value of None is decided from the
model and the corpus, as the field's description says.

Each field's ``description`` is the only text about it: the command line and the documentation
print it. A last sentence "Default: ..." explains a default of None; other fields show their
value. A field named in backquotes appears on the command line as its option.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from actlas.store.format.dtypes import ActivationDtype
from actlas.store.format.schema import Compression, LongDocuments, Order, Pool


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanOptions(_Options):
    """Definition of a store's rows: model, corpus, windows, order, and what is stored."""

    model: str = Field(
        description="Model to run: a hub id, a local folder, or builtin:NAME. Default: none, a new "
        "plan requires it."
    )
    corpus: str = Field(
        description="Documents to read: hf:NAME[:SPLIT], builtin:NAME; local files, folders or "
        "globs of .jsonl, .json, .csv, .tsv, .txt (also .gz, .bz2, .xz, .zst), .parquet, .arrow; "
        "or a folder of images (DIR/label/*.png). Default: none, a new plan requires it."
    )
    hookpoints: tuple[str, ...] = Field(
        default=("resid_post.*",),
        description="Hookpoints to store: names and globs (resid_post.*, attn_z.3, "
        "mlp_hidden.last), module paths, or names of TransformerLens and nnsight; on the command "
        "line separated by commas, or with the option repeated. `actlas hookpoints MODEL` lists "
        "them.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="Another tokenizer: a hub id or a local folder. Default: the model's own.",
    )
    revision: str | None = Field(
        default=None,
        description="Revision of a hub model: a commit, tag or branch. Default: main.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Execute Python code shipped with the model."
    )
    untrained: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Seed for freshly initialized weights in the model's architecture. Default: "
        "the model's trained weights.",
    )
    text_field: str | None = Field(
        default=None,
        description="Field or column with the text; a range of columns (stim2:stim13) is joined "
        "with spaces. Default: text.",
    )
    label_field: str | None = Field(
        default=None,
        description="Field with each document's label: stim14, or a dotted path such as "
        "meta.pile_set_name. Default: no labels.",
    )
    delimiter: str | None = Field(
        default=None,
        description="Character between the columns of .csv, .tsv and .txt tables: ';', '|', tab. "
        "A .txt is a table only with this option. Default: the one of , ; | and tab by which the "
        "header has the fields that are read.",
    )
    lines: bool = Field(
        default=False,
        description="Read each line of a .txt file as a document; blank lines are none.",
    )
    lowercase: bool = Field(default=False, description="Convert the text to lower case.")
    messages_field: str | None = Field(
        default=None,
        description="Field with chat messages ({role, content}), formatted by the tokenizer's chat "
        "template; the row column `role` gives each token's speaker. Default: none.",
    )
    span_fields: tuple[str, ...] = Field(
        default=(),
        description="Fields that label spans of the text: lists of {start, stop, label} in "
        "characters. Each becomes a row column of that name. Default: none.",
    )
    image_field: str | None = Field(
        default=None,
        description="Field with a record's image, as a path or as bytes. Default: none; a folder "
        "of images needs none.",
    )
    max_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Stop after the document that reaches this number of kept tokens (2_000_000, "
        "2e6, 2M). Default: all.",
    )
    max_length: int | None = Field(
        default=None,
        gt=0,
        description="Maximum tokens per window, special tokens included. Default: the model's "
        "context length, at most 1,024.",
    )
    long: LongDocuments | None = Field(
        default=None,
        description="Documents longer than a window: split them into consecutive windows, or "
        "truncate them. Default: window; truncate for a corpus with labels.",
    )
    order: Order | None = Field(
        default=None,
        description="Order of the documents and their rows. Default: shuffled; corpus for a corpus "
        "with labels.",
    )
    sample: Literal["uniform", "head"] | None = Field(
        default=None,
        description="Choice of documents under `max_tokens`: uniform over the whole corpus, or its "
        "head. Default: uniform for local files; head for streams and for corpus order.",
    )
    pool: tuple[Pool, ...] = Field(
        default=(),
        description="Store one pooled row per document as well: its last kept token, or the mean "
        "or sum over its kept tokens (last, mean, sum). Default: none.",
    )
    pooled_only: bool = Field(
        default=False, description="Store only the pooled rows, no token rows."
    )
    with_loss: bool = Field(
        default=False,
        description="Store each row's next-token loss; this runs the whole model.",
    )
    keep_special: bool = Field(
        default=False,
        description="Store rows for the tokenizer's special tokens as well.",
    )
    prepend_bos: bool = Field(
        default=False,
        description="Begin every window with the tokenizer's BOS token, as SAELens does, where "
        "the tokenizer itself adds none (GPT-2, Pythia).",
    )
    dtype: ActivationDtype = Field(
        default="bfloat16", description="Data type of the stored activations."
    )
    model_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Data type of the model's computation; auto is the checkpoint's own, or "
        "float32 on a CPU where that is measured to be faster.",
    )
    compression: Compression = Field(
        default="dense",
        description="Compression of the stored activations: dense is the smallest, fast the "
        "cheapest to write, none stores raw arrays.",
    )
    shard_rows: int | None = Field(
        default=None,
        ge=16,
        le=1 << 24,
        description="Rows per shard, a power of two. Default: 65,536, halved until a shard fits in "
        "memory and the store has at least 16 shards, for small models at most to 16,384.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of every shuffle.")

    _documents: Any = PrivateAttr(default=None)

    @property
    def documents(self) -> Any:
        """The documents themselves, where they were given in Python instead of a corpus's name."""
        return self._documents

    def with_documents(self, documents: Any) -> PlanOptions:
        """Return these options with documents that were given in Python.

        Parameters
        ----------
        documents : GivenDocuments
            The documents; see :mod:`actlas.pipeline.corpus.in_memory`.
        """
        options = self.model_copy()
        options._documents = documents
        return options

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = {"tab": "\t", "\\t": "\t"}.get(value, value)
        if len(value) != 1 or not value.isascii() or value.isalnum() or value in '"\r\n':
            raise ValueError("should be one character such as ; or |, or the word tab")
        return value


class RunOptions(_Options):
    """Definition of a run: executor, workers, device, budgets. All may change between runs."""

    executor: Literal["inline", "ray"] = Field(
        default="inline",
        description="Run in this process (inline), or on Ray workers. Default: ray where `workers` "
        "is not 1 or `address` is given, else inline.",
    )
    workers: int | Literal["auto"] = Field(
        default=1,
        description="Workers, each with its own copy of the model; several run on Ray. A number "
        "that exceeds the cluster's room waits for machines, which makes an autoscaler add them. "
        "auto: as many as the machines have room for, adjusted as machines join and leave.",
    )
    address: str | None = Field(
        default=None,
        description="Address of a running Ray cluster; auto finds a local one. Default: "
        "RAY_ADDRESS, else Ray is started on this machine.",
    )
    model_path: str | None = Field(
        default=None,
        description="Folder to load the plan's model from, if it has moved; the files must be the "
        "same. Default: the location recorded in the plan.",
    )
    allow_remote_code: bool = Field(
        default=False,
        description="Execute the model's own Python code for a store planned with "
        "`trust_remote_code`. The plan alone never allows it, because a store may come from an "
        "untrusted source; repeating `trust_remote_code` has the same effect.",
    )
    device: str = Field(
        default="auto",
        description="Device: cpu, cuda, cuda:1 or mps; auto is the accelerator if there is one.",
    )
    device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        default=None,
        description="Distribute the model over a worker's GPUs, memory and disk (accelerate). "
        "Default: none.",
    )
    max_device_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Maximum bytes of weights on each device, with `device_map` (8G). Default: the "
        "free memory.",
    )
    offload_folder: str | None = Field(
        default=None,
        description="Folder for weights that `device_map` cannot place in memory. Default: a "
        "temporary folder.",
    )
    tokens_per_batch: int | None = Field(
        default=None,
        ge=1,
        description="Maximum tokens per forward pass: sequences times the longest one, padding "
        "included. Default: 2,048 on a CPU, else 8,192.",
    )
    packing: Literal["auto", "padded", "packed"] = Field(
        default="auto",
        description="Batch layout: sequences padded to one length, or packed into one row without "
        "attention between them.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per worker. Default: the machine's CPUs divided by its workers.",
    )
    cpus_per_worker: float = Field(
        default=1, ge=0, description="CPUs that Ray reserves for each worker."
    )
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that Ray reserves for each worker; fractions are allowed. Default: 1 if "
        "the cluster has GPUs, or once some join, and `device` is not cpu; else 0.",
    )
    max_memory_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Memory budget of one worker (4G); the workers of one machine must fit its "
        "memory together. Default: the memory that is free when the worker starts.",
    )
    on_nonfinite: Literal["record", "refuse"] = Field(
        default="record",
        description="NaN and infinity among the activations: count and report them, or stop with "
        "an error.",
    )
    max_task_faults: int = Field(
        default=3,
        ge=1,
        description="Exceptions that a shard may raise before it is quarantined.",
    )
    max_process_deaths: int = Field(
        default=6,
        ge=1,
        description="Worker processes that may die on a shard before it is quarantined.",
    )
    max_node_losses: int = Field(
        default=20,
        ge=1,
        description="Machines that may be lost with a shard before it is quarantined.",
    )
    deadline_floor_s: float = Field(
        default=300,
        gt=0,
        description="Seconds that a shard on Ray may always take; the deadline is this or 10 times "
        "the median so far, whichever is longer. Until shards are done, late ones are retried "
        "without a charge at 2, 4 and 8 times this.",
    )
    start_limit_s: float = Field(
        default=1800,
        gt=0,
        description="Seconds that a Ray worker may take to load its model, or `deadline_floor_s` "
        "if that is longer; the time to wait for a machine does not count.",
    )
    writers_per_machine: int | None = Field(
        default=None,
        ge=1,
        description="Maximum shards that the workers of one machine write at the same time. "
        "Default: unlimited.",
    )
    retry_quarantined: bool = Field(
        default=False, description="Release quarantined shards and try them again."
    )

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be greater than or equal to 1, or auto")
        return value

    @model_validator(mode="before")
    @classmethod
    def _ray_for_workers(cls, given: Any) -> Any:
        """Choose Ray where options ask for it and the executor is left open."""
        if isinstance(given, dict) and given.get("executor") is None and _wants_ray(given):
            return {**given, "executor": "ray"}
        return given

    @model_validator(mode="after")
    def _no_workers_inline(self) -> RunOptions:
        """Refuse options of Ray's for a run in this process, which would ignore them."""
        if self.executor == "inline":
            if self.workers != 1:
                raise ValueError(
                    f"executor inline is one process, and workers is {self.workers}. Leave "
                    "executor out, which runs workers on Ray, or set workers to 1"
                )
            if self.address is not None:
                raise ValueError(
                    f"executor inline is one process on this machine, and address is "
                    f"{self.address}. Leave executor out, which runs on that Ray cluster, or leave "
                    "address out"
                )
        return self

    @property
    def n_workers(self) -> int:
        """Number of workers that share this machine as far as is known: 1 for ``auto``."""
        return self.workers if isinstance(self.workers, int) else 1


def _wants_ray(given: dict[str, Any]) -> bool:
    return given.get("workers") not in (None, 1) or given.get("address") is not None
