"""All JSON outputs by command, and their JSON schemas.

``python -m actlas.jobs.run.reports.schemas FOLDER`` writes the schemas.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from actlas.jobs.run.reports.analysis import (
    AblateReport,
    ContextsReport,
    LocalizeReport,
    SaeIndexReport,
    SaeTrainReport,
)
from actlas.jobs.run.reports.base import ErrorReport
from actlas.jobs.run.reports.checks import DoctorReport, VerifyReport
from actlas.jobs.run.reports.contents import HookpointsReport, InfoReport, ShowReport
from actlas.jobs.run.reports.progress import StatusReport

REPORTS: Mapping[str, type[BaseModel]] = {
    "hookpoints": HookpointsReport,
    "status": StatusReport,
    "verify": VerifyReport,
    "doctor": DoctorReport,
    "info": InfoReport,
    "show": ShowReport,
    "localize": LocalizeReport,
    "ablate": AblateReport,
    "sae-train": SaeTrainReport,
    "sae-index": SaeIndexReport,
    "contexts": ContextsReport,
    "error": ErrorReport,
}
"""Models by command; ``error`` is the output of any command that fails."""


def schema_files() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each schema file."""
    for name, model in REPORTS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema |= model.model_json_schema()
        yield f"{name}.schema.json", json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write all schema files.

    Parameters
    ----------
    folder : Path
        Folder of the files; it is created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schema_files():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
