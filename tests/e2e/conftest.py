"""Fixtures of the end-to-end tests: a real postbus, real certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.harness import Postbus, running

Start = Callable[..., Postbus]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start postbus: ``start(tree(...), environment={...})``, each in a folder of its own; all are ended after the test."""
    with ExitStack() as stack:
        count = 0

        def start_one(config: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] | None = None) -> Postbus:
            nonlocal count
            count += 1
            return stack.enter_context(running(tmp_path / f"postbus{count}", config, environment=environment))

        yield start_one


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority whose certificates every test may use."""
    return Authority(tmp_path_factory.mktemp("certificates"))
