"""The house itself: what is shipped, what is promised on the pages, what must never be in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.splitlines()]


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_the_embedded_model(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the wheel")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "demo", "*.egg-info", "tests")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("store", "pipeline", "analysis", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            assert f"actlas/{path.relative_to(ROOT)}" in names, path
    assert "actlas/py.typed" in names
    for data in ("actlas-6m/model.safetensors", "actlas-6m/tokenizer.json"):
        assert f"actlas/pipeline/builtin/{data}" in names, data
    assert not any(name.endswith((".so", ".pt", ".bin", ".pyc")) for name in names)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from actlas.jobs.cli.app import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'dask', 'transformers', 'datasets', 'zarr', 'pandas', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "extract" in done.stdout


def test_no_tracked_file_names_a_path_of_a_machine() -> None:
    bad = re.compile(rb"(/home/|/Users/|/root/|/work/)[A-Za-z]")
    allowed = {"Dockerfile"}
    for path in tracked():
        if path.is_symlink() or path.suffix in {".safetensors", ".png"} or path.name in allowed:
            continue
        if path == Path(__file__).resolve():
            continue
        assert not bad.search(path.read_bytes()), path


def test_links_in_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_names_no_option_that_is_not_there() -> None:
    from click.testing import CliRunner

    from actlas.jobs.cli import sae
    from actlas.jobs.cli.app import VERBS, cli

    verbs = [[verb] for verb in VERBS] + [["sae", verb] for verb in sae.VERBS]
    helps = "".join(CliRunner().invoke(cli, [*verb, "--help"]).output for verb in verbs)
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "demo.sh").read_text()
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert used <= set(re.findall(r"--[a-z][a-z-]+", helps)), used


def test_the_constraints_pin_what_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(d for group in groups.values() for d in group)]
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9_-]+", requirement)
        assert name is not None
        if name[0] != "actlas":
            assert name[0].lower().replace("_", "-") in pinned, requirement
