"""The two builds that take minutes, the compiled package and the image: begun side by side, since each keeps one core busy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import compiled
from tests.image import builder

TIMEOUT_S = 900
"""What a test that may be the first to ask for a build adds to its time limit; a build's own commands may take 600 s each."""

Builds = Mapping[str, Future[Any]]


@pytest.fixture(scope="session")
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """The builds that this run's tests ask for, all ended: what is measured later is measured undisturbed."""
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ExitStack() as kept:
        makers = {
            "compiled_tree": compiled.tree,
            "image": lambda: kept.enter_context(builder.built(tmp_path_factory.mktemp("store"))),
        }
        with ThreadPoolExecutor() as pool:
            ended = {name: pool.submit(make) for name, make in makers.items() if name in asked}
        yield ended


@pytest.fixture(scope="session")
def compiled_tree(builds: Builds) -> Path:
    """The folder with the compiled package, as ``tests.compiled.tree`` returns it."""
    tree: Path = builds["compiled_tree"].result()
    return tree


@pytest.fixture(scope="session")
def image(builds: Builds) -> builder.Image:
    """The image, built once for all tests."""
    built: builder.Image = builds["image"].result()
    return built
