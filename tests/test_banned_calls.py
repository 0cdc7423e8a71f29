"""What the code must never do: unpickle, evaluate, hand a line to a shell, or load code unasked.

Read from the source itself, so that a new call is seen before anything runs it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("store", "pipeline", "analysis", "jobs")

MODULES = frozenset(
    ["pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code"]
)
NAMES = frozenset(["eval", "exec", "compile", "__import__", "input", "breakpoint"])
CALLS = frozenset(
    [
        *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.execl", "os.execlp"),
        *("os.spawnv", "os.spawnl", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
        *("yaml.FullLoader", "yaml.UnsafeLoader", "pd.read_pickle", "pandas.read_pickle"),
        *("tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.TemporaryDirectory"),  # leftovers.py
        *("tempfile.NamedTemporaryFile", "tempfile.TemporaryFile"),
        *("tempfile.mktemp", "jinja2.Template", "jinja2.Environment", "torch.hub.load"),
        *("shutil.unpack_archive", "runpy.run_path", "runpy.run_module", "logging.config.listen"),
    ]
)
IMPORTERS = {
    "store/ledger/job_kind.py": "the function by which a registered kind of job is opened",
    "store/shards/tensors.py": "torch by its name, since the store does not need it",
    "jobs/cli/verbs.py": "imports the commands' modules, by name from a fixed list",
    "jobs/run/repair_derived.py": "resolves the function that a kind of job of ours names",
    "store/ledger/job_kinds.py": "imports the modules of one package of ours, each of one kind",
    "store/zarr_hook.py": "imports our codec, by a constant name, once zarr is imported",
}
"""Files that may import by a string (a call in ``BY_STRING``), and why."""
BY_STRING = ("import_module", "resolve_name")


PRINTER = "jobs/terminal.py"
"""The only file that writes to the terminal: what it writes is escaped."""
TYPE = "rich.console.Console"
"""May be imported for annotations; to call it is what prints."""
PRINTS = frozenset(
    [
        *("print", "Console", TYPE, "rich.print", "sys.stdout", "sys.stderr"),
        *("sys.__stdout__", "sys.__stderr__", "logging.StreamHandler", "logging.basicConfig"),
        *(f"click.{name}" for name in ("echo", "secho", "style", "prompt", "confirm", "pause")),
        *(f"traceback.{name}" for name in ("print_exc", "print_exception", "print_stack")),
    ]
)
PRINTING = {"pipeline/builtin/nonwords.py": "run by hand, it prints letters that it draws itself"}
"""Other files that print, and why they may."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            yield name, ast.parse(path.read_text(encoding="utf-8"), name)


def dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    found = next((k.value for k in call.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else found


def faults(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                if module.split(".")[0] in MODULES:
                    yield f"{where}: imports {module}"
                if module.split(".")[0] == "subprocess":
                    yield f"{where}: starts programs"
        if isinstance(node, ast.Attribute) and dotted(node) in CALLS:
            yield f"{where}: {dotted(node)}"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if isinstance(node.func, ast.Name) and node.func.id in NAMES:
            yield f"{where}: {node.func.id}()"
        if called == "torch.load" and keyword(node, "weights_only") is not True:
            yield f"{where}: torch.load without weights_only=True"
        if called in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is not False:
            yield f"{where}: np.load without allow_pickle=False"
        if called in ("np.save", "numpy.save") and keyword(node, "allow_pickle") is not False:
            yield f"{where}: np.save without allow_pickle=False"
        if called.endswith(BY_STRING) and name not in IMPORTERS:
            yield f"{where}: {called}, an import by a string"
        if keyword(node, "shell") not in (None, False):
            yield f"{where}: a shell"
        if keyword(node, "trust_remote_code") is True:
            yield f"{where}: trust_remote_code that nobody asked for"
        if ast.unparse(node.func).endswith(".from_pretrained") and not any(
            k.arg == "trust_remote_code" for k in node.keywords
        ):
            yield f"{where}: from_pretrained does not say whether code may be run"
        constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
        if "RAY_AUTH_MODE" in constants and "disabled" in constants:
            yield f"{where}: Ray without authentication"
        whole = ast.unparse(node.func)
        if (
            whole.startswith("auto_class")
            and whole.endswith("from_pretrained")
            and keyword(node, "use_safetensors") is not True
        ):
            yield f"{where}: weights that may be pickled"


def prints(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.Attribute):
            found = dotted(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found = node.func.id
        elif isinstance(node, ast.ImportFrom):
            named = (f"{node.module}.{alias.name}" for alias in node.names)
            found = next((each for each in named if each in PRINTS - {TYPE}), "")
        if found in PRINTS:
            yield f"{name}:{getattr(node, 'lineno', 0)}: {found}"


@pytest.mark.slow
def test_one_file_prints() -> None:
    """Names of strangers reach the terminal through its functions alone, which escape them."""
    found = [fault for name, tree in sources() for fault in prints(name, tree) if name != PRINTER]
    assert not [each for each in found if each.partition(":")[0] not in PRINTING], "\n".join(found)
    for name in (PRINTER, *PRINTING):
        assert list(prints(name, ast.parse((ROOT / name).read_text(encoding="utf-8")))), name


@pytest.mark.parametrize(
    "code",
    [
        "print(x)",
        "click.echo(x)",
        "from click import secho",
        "sys.stderr.write(x)",
        "from sys import stdout",
        "Console().print(x)",
        "rich.console.Console(stderr=True)",
        "logging.StreamHandler()",
        "traceback.print_exc()",
        "from rich import print",
    ],
)
def test_the_test_sees_what_prints(code: str) -> None:
    assert list(prints("made-up.py", ast.parse(code)))


@pytest.mark.slow
def test_no_call_that_could_run_a_strangers_code() -> None:
    found = [fault for name, tree in sources() for fault in faults(name, tree)]
    assert not found, "\n".join(found)


def test_ray_is_never_told_to_trust_everybody() -> None:
    for name, tree in sources():
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        assert "disabled" not in strings, name  # RAY_AUTH_MODE=disabled, however it is put


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval('1')",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f, yaml.SafeLoader)",
        "import subprocess",
        "run('x', shell=True)",
        "os.system('x')",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x)",
        "auto_class(a).from_pretrained(x, trust_remote_code=t)",
        "os.environ.setdefault('RAY_AUTH_MODE', 'disabled')",
        "importlib.import_module(x)",
        "pkgutil.resolve_name(x)",
    ],
)
def test_the_test_sees_them(code: str) -> None:
    assert list(faults("made-up.py", ast.parse(code)))


def test_every_leave_is_used() -> None:
    """A file that needs no leave any longer has none: the next reader believes these lists."""
    for name in IMPORTERS:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"), name)
        assert [fault for fault in faults("made-up.py", tree) if "by a string" in fault], name
