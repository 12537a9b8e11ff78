from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_search import write_folder

Build = Callable[..., Path]


@pytest.fixture
def build_search(tmp_path: Path) -> Build:
    """(trials, finals, **changes of search.json) -> a search folder; without trials, 48 made-up ones."""

    def build(
        trials: list[tuple[dict[str, Any], list[Any]]] | None = None,
        finals: list[dict[str, Any]] | None = None,
        **changes: Any,
    ) -> Path:
        return write_folder(tmp_path / "search", trials, finals, **changes)

    return build
