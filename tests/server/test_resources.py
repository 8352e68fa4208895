"""Hostile clients cost little memory and nobody else's time: the rows of ``resources``, with fewer connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.resources import ROWS, measured


@pytest.mark.parametrize("name", ROWS)
def test_cost(name: str, tmp_path: Path) -> None:
    """Memory is bounded, others are answered meanwhile, the load gets its listed answer, and nothing is left open."""
    found = measured(ROWS[name], ROWS[name].fewer, tmp_path)
    assert "" == found.wrong
