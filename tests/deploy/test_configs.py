"""The configurations that a user copies are configurations."""

from __future__ import annotations

import re
from pathlib import Path

from support.jobs import ROOT

from actlas.jobs.cli.submit import entrypoint, where
from actlas.jobs.config import resolve


def test_the_files_that_are_copied(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "run.yaml").write_text(block)
    store, asked = where(str(tmp_path / "run.yaml"), ["run.workers=16"])
    assert store == "/shared/run.zarr"
    assert asked.run.workers == 16
    assert "run.workers=16" in entrypoint(store, asked)
    slurm = resolve({"run": {"workers": "auto"}}, [], ROOT / "deploy" / "slurm" / "run.yaml")
    assert slurm.plan_options().hookpoints == ("resid_post.middle", "resid_post.last")
    assert slurm.run.workers == "auto"


def test_the_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    launcher = (ROOT / "deploy" / "slurm" / "launch.py").read_text()
    for name in set(re.findall(r"ACTLAS_\w+", page)):
        assert name in launcher, name
    for path in re.findall(r"\]\((\.\./[^)#]+)\)", page):
        assert (ROOT / "docs" / path).exists(), path
    heads = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.*)", page, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= heads
