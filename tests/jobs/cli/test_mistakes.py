"""Natural mistakes, each with the message that it should give: what was got, expected, to do.

No mistake changes a file or leaves one behind.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from support.localizer import labelled, stored
from support.stores import create, fill, plan_for

import actlas
from actlas.jobs.cli.app import cli
from actlas.store.errors import EXIT_ERROR, EXIT_RESUME, EXIT_USAGE, InterruptedRunError

NOBODY = 65534
MODEL = "--model builtin:actlas-6m"
PLAN = f"plan new.zarr {MODEL}"
SAE = "--hookpoint resid_post.0 --width 16 --k 4 --batch-size 32 --steps 5"

MISTAKES: tuple[tuple[str, str], ...] = (
    # Verbs and options
    ("stats run.zarr", "No such command 'stats'. Did you mean status?"),
    ("localise run.zarr", "No such command 'localise'. Did you mean localize?"),
    ("sae trian run.zarr", "No such command 'trian'. Did you mean train?"),
    ("extract new.zarr --modle gpt2", "No such option '--modle'."),
    ("extract", "Missing argument 'STORE'"),
    # Paths of stores
    ("status rn.zarr", "rn.zarr: there is no store here. Did you mean run.zarr? `actlas plan "),
    ("status corpus.jsonl", "there is no store here, but a file. Give the folder of a store."),
    ("info sae", "there is no store here, but the folder of a sparse autoencoder."),
    ("info mask", "there is no store here, but the result of `actlas localize`."),
    ("verify full", "there is no store here, but a folder of other files."),
    ("verify empty", "there is no store here. `actlas plan empty --model M"),
    ("repair corpus.jsonl", "there is no store here, but a file."),
    ("sae encode sae --sae run.zarr", "there is no store here, but the folder of a sparse"),
    ("status ftp://host/x.zarr", "ftp:// URL; this version opens folders and s3://"),
    # Documents and units
    ("show run.zarr --doc 99", "document 99: this store has documents 0 to 7"),
    ("show run.zarr --doc two", "'--doc': got 'two', expected a whole number"),
    ("show run.zarr --doc -1", "'--doc': got '-1', expected a whole number of 0 or more"),
    ("show run.zarr --doc 2 --pos 400", "token 400: document 2 has tokens 0 to 39"),
    ("repair run.zarr --findings corpus.jsonl", "expected the output of `actlas verify STORE"),
    ("contexts run.zarr", "give --sae NAME and --feature F (or --some N), or --hookpoint H and"),
    ("contexts run.zarr --hookpoint resid_post.0 --unit 24", "has units 0 to 23."),
    ("contexts run.zarr --hookpoint resid_post.0 --unit 1 -k 0", "got 0, expected 1 or more"),
    ("contexts run.zarr --sae sae --feature 3", "this store has no features 'sae'; it has none."),
    (
        "contexts run.zarr --hookpoint resid_post.0 --unit 1 --html nowhere/x.html",
        "nowhere/x.html: expected the name of a file in an existing folder.",
    ),
    # Contrasts and masks
    ("localize run.zarr --contrast s:n --out out", "labels are: S, N, other. Did you mean S:N?"),
    ("localize run.zarr --contrast S --out out", "got 'S', expected two labels, POSITIVE:NEGATIVE"),
    ("localize run.zarr --contrast S:S --out out", "expected two different labels."),
    ("localize run.zarr --contrast S:other --out out", "'other' has 1 document with tokens (and 0"),
    ("localize run.zarr --contrast role=a:b --out out", "no token column 'role'."),
    ("localize run.zarr --contrast S:N --top 0.01 --out out", "The share 0.01 is 1%"),
    ("localize run.zarr --contrast S:N --top 200% --out out", "(above 0%, at most 100%)"),
    ("localize run.zarr --contrast S:N --out full", "full: exists and is not empty; it is left as"),
    ("localize run.zarr --contrast S:N --out notes.txt", "notes.txt: exists and is not empty;"),
    ("localize run.zarr --contrast S:N --out run.zarr/m", "run.zarr/m: lies in the store "),
    ("localize run.zarr --contrast S:N --out s3://b/m", "s3://b/m: got a URL, expected a folder"),
    ("localize run.zarr --contrast S:N --figures jpg --out out", "got 'jpg', expected png, svg, "),
    ("localize run.zarr --contrast S:N --dpi 0 --out out", "--dpi: got 0, expected 30 to 1,200"),
    ("localize bare.zarr --contrast S:N --out out", "Plan the store again with --label-field"),
    ("localize run.zarr --contrast S:N", "Missing option '--out'"),
    (f"ablate builtin:actlas-6m --mask no {MODEL}", "No such option '--model'"),
    ("ablate builtin:actlas-6m --mask no --corpus corpus.jsonl --out out", "no: no such mask."),
    (
        "ablate builtin:actlas-6m --mask sae --corpus corpus.jsonl --out out",
        "sae: the folder has no mask.json. `actlas localize` makes one",
    ),
    (
        "ablate builtin:actlas-6m --mask mask --corpus corpus.jsonl --out out",
        "this mask was made for another model",
    ),
    # Sparse autoencoders
    ("sae train run.zarr --hookpoint resid_pots.0 --out out", "hookpoint 'resid_pots.0'"),
    (f"sae train run.zarr {SAE} --k 20 --out out", "k: got 20, expected at most d_sae, 16"),
    (f"sae train run.zarr {SAE} --steps -5 --out out", "'--steps': got '-5', expected a whole"),
    (f"sae train run.zarr {SAE} --batch-size 4096 --out out", "but the selection has 153 rows."),
    (f"sae train run.zarr {SAE} --device cuad --out out", "has this name. Did you mean cuda?"),
    (f"sae train run.zarr {SAE} --out full", "this one has other files, which are left as they"),
    (f"sae train run.zarr {SAE} --out run.zarr/sae", "run.zarr/sae: lies in the store "),
    (f"sae train run.zarr {SAE} --k 5 --out training", "an unfinished training with k 4, got 5."),
    ("sae encode run.zarr --sae no", "no: no such folder. Expected one with cfg.json and"),
    ("sae encode run.zarr --sae wide", "reads rows of 40 units; resid_post.0 of"),
    ("sae encode run.zarr --sae elsewhere", "was trained on resid_post.5;"),
    ("sae encode run.zarr --sae training", "a training that is not finished. Run the same"),
    ("sae encode run.zarr --sae mask", "this is the result of `actlas localize`."),
    ("sae encode run.zarr --sae run.zarr", "this is a store of activations."),
    ("sae encode run.zarr --sae sae --hookpoint mlp.1", "was trained on resid_post.0, got --hook"),
    ("sae encode run.zarr --sae sae --device cuda:77", "--device cuda:77: "),
    ("sae index run.zarr --sae sae", "it has none. `actlas sae encode "),
    # Models and corpora
    (f"{PLAN}", "a plan needs --corpus: for example"),
    (f"{PLAN} --corpus no.jsonl", "no.jsonl: there is no such path. Expected a file, folder or"),
    (f"{PLAN} --corpus empty", "empty: this folder has no corpus files in it. Expected .jsonl"),
    (f"{PLAN} --corpus empty.jsonl", "it has no records. Expected at least one with text."),
    (f"{PLAN} --corpus run.zarr", "got a store of actlas, expected a corpus: a file, folder or"),
    (f"{PLAN} --corpus sae", "got the folder of a sparse autoencoder, expected a corpus"),
    (f"{PLAN} --corpus book.docx", "got a file with the suffix '.docx', expected one of .jsonl"),
    (f"{PLAN} --corpus corpus.jsonl --text-field txet", "Its fields are text, kind: name the one"),
    (f"{PLAN} --corpus corpus.jsonl --label-field knd", "Its fields are text, kind. Name the one"),
    ("plan new.zarr --model notes.txt --corpus corpus.jsonl", "is a file, not a folder. Expected"),
    ("plan new.zarr --model empty --corpus corpus.jsonl", "has no config.json: it is no transf"),
    ("plan new.zarr --model weightless --corpus corpus.jsonl", "weightless holds no weights."),
    (f"{PLAN} --corpus corpus.jsonl --tokenizer ./no", "--tokenizer ./no: does not exist."),
    (f"{PLAN} --corpus corpus.jsonl --hookpoints resid_pots.3", "resid_post.3"),
    (f"{PLAN} --corpus corpus.jsonl --max-tokens 5X", "got '5X', expected a whole number such as"),
    (f"{PLAN} --corpus corpus.jsonl --max-tokens 0", "--max-tokens: got 0, expected a value great"),
    (f"{PLAN} --corpus corpus.jsonl --max-length 1", "leaves no room beside 1 special token: give"),
    (f"{PLAN} --corpus corpus.jsonl --pool median", "got 'median', expected 'last', 'mean' or"),
    (f"{PLAN} --corpus corpus.jsonl --dtype int8", "'int8' is not one of 'bfloat16', 'float16'"),
    # Where the store is to be
    (f"plan notes.txt {MODEL} --corpus corpus.jsonl", "notes.txt: "),
    (f"plan full {MODEL} --corpus corpus.jsonl", "full: this folder is not empty and is not a"),
    (f"plan run.zarr/x {MODEL} --corpus corpus.jsonl", "and a store holds no other."),
    ("plan run.zarr --seed 8", "planned with seed = 7, now asked for 8 (--seed). A plan is frozen"),
    (f"extract run.zarr {MODEL}", "run.zarr: planned with model = 'made-up', now asked for"),
    # Configurations
    ("plan new.zarr builtin:actlas-6m", "A model is given with --model, a corpus with --corpus."),
    ("extract new.zarr workers=4", "Did you mean run.workers=...?"),
    ("extract new.zarr run.wrkers=4", "unknown key of run: 'wrkers'. Did you mean workers?"),
    ("extract new.zarr --workers 0", "--workers: got 0, expected a value greater than or equal"),
    ("extract new.zarr --config no.yaml", "no.yaml: cannot be read (No such file or directory)"),
    ("extract new.zarr --config tab.yaml", "tab.yaml: not YAML: "),
    ("extract new.zarr --config list.yaml", "got a list, expected the sections `plan:` and `run"),
    ("extract new.zarr --config section.yaml", "unknown section: 'plans'. Did you mean plan?"),
    ("extract new.zarr --config key.yaml", "unknown key in `plan:`: 'max_token'. Did you mean max"),
    ("extract new.zarr --config type.yaml", "type.yaml: seed: got 'many', expected a whole number"),
    ("extract new.zarr --config twice.yaml", "the key 'plan' is given twice"),
    ("submit good.yaml", "no store to extract into: a line `store: s3://bucket/run.zarr`"),
)

HALF_MADE: tuple[tuple[str, int, str], ...] = (
    ("info run.zarr/activations", EXIT_ERROR, "It is a part of the store "),
    ("localize half.zarr --contrast S:N --out out", EXIT_ERROR, "2 of 3 shards are missing, and"),
    ("contexts half.zarr --hookpoint mlp.1 --unit 1", EXIT_ERROR, "2 of 3 shards are not extract"),
    ("show half.zarr --doc 7", EXIT_ERROR, "not extracted yet"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stores, autoencoders, a mask, corpora and configurations, some half-made."""
    root = tmp_path_factory.mktemp("world")
    columns = labelled([5, 0, 40, 3, 9, 12, 1, 100], [0, 1, 1, 0, 1, 0, 2, 1])
    store, _ = stored(root / "run.zarr", columns, shard_rows=64)
    fill(create(root / "half.zarr", plan_for(columns, shard_rows=64), columns), range(1))
    files = {
        "corpus.jsonl": "".join(f'{{"text": "one {i}", "kind": "S"}}\n' for i in range(6)),
        **{"empty.jsonl": "", "book.docx": "PK", "notes.txt": "mine", "full/mine.txt": "mine"},
        **{"weightless/config.json": '{"model_type": "llama"}', "good.yaml": "plan: {seed: 1}"},
        **{"tab.yaml": "plan:\n\tseed: 1\n", "list.yaml": "- plan\n"},
        **{"section.yaml": "plans: {seed: 1}", "key.yaml": "plan: {max_token: 5}"},
        **{"type.yaml": "plan: {seed: many}", "twice.yaml": "plan: {seed: 1}\nplan: {seed: 2}\n"},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "empty").mkdir()
    for name, d_in, layer in (("sae", 24, 0), ("wide", 40, 0), ("elsewhere", 24, 5)):
        write_sae(root / name, d_in, f"blocks.{layer}.hook_resid_post")
    made = {"d_sae": 16, "k": 4, "batch_size": 32, "steps": 5}
    with pytest.raises(InterruptedRunError):
        actlas.train_sae(store, "resid_post.0", root / "training", stop=lambda: True, **made)
    actlas.localize(store, "S:N", top=3).save(root / "mask", figures="none")
    columns.label, columns.label_names = None, ()
    stored(root / "bare.zarr", columns)
    return root


def write_sae(folder: Path, d_in: int, hook_name: str) -> None:
    """An autoencoder in SAELens's format."""
    shapes = {"W_enc": (d_in, 16), "b_enc": (16,), "W_dec": (16, d_in), "b_dec": (d_in,)}
    folder.mkdir()
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    cfg = {"d_in": d_in, "d_sae": 16, "dtype": "float32", "architecture": "standard"}
    cfg |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "device": "cpu"}
    about = {"metadata": {"hook_name": hook_name, "model_name": "made-up"}}
    (folder / "cfg.json").write_text(json.dumps(cfg | about))


def lying_there(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


def call(line: str) -> Result:
    return CliRunner().invoke(cli, shlex.split(line))


@pytest.fixture
def unchanged(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(world)
    before = lying_there(world)
    yield
    assert lying_there(world) == before


def check(done: Result, code: int, words: str) -> None:
    assert done.exit_code == code, done.output
    progress = ("planning ", "reading ")
    said = [line for line in done.stderr.splitlines() if not line.startswith(progress)]
    assert words in said[-1], done.stderr
    assert said[0].startswith(("error: ", "Usage: ")) and "Traceback" not in done.output
    assert len(said) == 1 or said[0].startswith("Usage: "), "one line, or click's four"


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gets_its_message(unchanged: None, line: str, words: str) -> None:
    check(call(line), EXIT_USAGE, words)


@pytest.mark.parametrize(("line", "code", "words"), HALF_MADE, ids=[row[0] for row in HALF_MADE])
def test_what_is_half_made(unchanged: None, line: str, code: int, words: str) -> None:
    check(call(line), code, words)


def test_there_are_sixty() -> None:
    assert len({line for line, _ in MISTAKES}) == len(MISTAKES) >= 60


def test_an_encoding_of_a_half_extracted_store_says_how_to_go_on(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    done = call("sae encode half.zarr --sae sae")
    assert done.exit_code == EXIT_RESUME
    assert "2 shards are not extracted -> next: actlas extract " in done.stdout
    unfinished = call("sae index half.zarr --sae sae")
    assert unfinished.exit_code == EXIT_USAGE and "encode" in unfinished.stderr, unfinished.output
    trained = call(f"sae train half.zarr {SAE} --steps 1 --batch-size 16 --out trained")
    assert trained.exit_code == 0
    assert "2 of 3 shards are not extracted: training on the rows of the others" in trained.stderr


PERMISSIONS = (
    ("localize run.zarr --contrast S:N --out locked/out", "locked"),
    (f"plan locked/new.zarr {MODEL} --corpus corpus.jsonl", "locked"),
    (f"{PLAN} --corpus secret.jsonl", "secret.jsonl"),
    ("status closed.zarr", "closed.zarr"),
    ("ablate builtin:actlas-6m --mask secret.json --corpus corpus.jsonl --out out", "secret.json"),
)


@pytest.mark.parametrize(("line", "name"), PERMISSIONS, ids=[row[0] for row in PERMISSIONS])
def test_permissions_of_another_user(
    locked: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    """The message names the path and the reason; root may do all, so a child of it may not."""
    monkeypatch.chdir(locked)
    code, text = as_nobody(line) if os.geteuid() == 0 else _outcome(call(line))
    assert code in (EXIT_ERROR, EXIT_USAGE), text
    last = text.splitlines()[-1]
    assert last.startswith("error: ") and name in last and "Traceback" not in text, text
    assert "ermission" in last or "not writable" in last, text


@pytest.fixture
def locked(world: Path) -> Iterator[Path]:
    """The world with what another user may not read or write, below folders that they may pass."""
    for name in ("secret.jsonl", "secret.json"):
        (world / name).write_text("{}")
        (world / name).chmod(0)
    for name, mode in (("locked", 0o555), ("closed.zarr", 0)):
        (world / name).mkdir(exist_ok=True)
        (world / name).chmod(mode)
    for folder in (world, *world.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o111)
    world.chmod(0o777)
    yield world
    for name in ("secret.jsonl", "secret.json", "locked", "closed.zarr"):
        (world / name).chmod(0o755)


def as_nobody(line: str) -> tuple[int, str]:
    """Run a command in a child of this process that has no privileges."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code, text = 99, "the child failed"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code, text = _outcome(call(line))
        finally:
            os.write(write, text.encode()[-4000:])
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


def _outcome(done: Result) -> tuple[int, str]:
    error = "" if done.exception is None or done.exit_code != 1 else f"\n{done.exception!r}"
    return done.exit_code, done.stderr if done.stderr else f"{done.output}{error}"
