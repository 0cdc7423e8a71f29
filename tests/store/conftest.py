from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.s3 import s3, s3_server  # noqa: F401 - fixtures
from support.stores import Columns, create, plan_for, words_columns

from actlas.store.store import Store


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Store]:
    def made(
        words_seed: int = 0,
        n_documents: int = 60,
        mean_tokens: int = 20,
        columns: Columns | None = None,
        name: str = "run.zarr",
        **changes: Any,
    ) -> Store:
        documents = columns or words_columns(words_seed, n_documents, mean_tokens)
        return create(tmp_path / name, plan_for(documents, **changes), documents)

    return made
