"""The house's rules that no other tool checks: who owns which library, what the top level holds, what never stands in a file."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent

OWNERS = {
    "aiohttp": "postbus.sinks.webhook",
    "aiokafka": "postbus.sinks.kafka",
    "argon2": "postbus.server.users",
    "fast_mail_parser": "postbus.event.mime",
    "fastapi": "postbus.sidecar",
    "httpx": "postbus.sinks.webhook",
    "httpx_aiohttp": "postbus.sinks.webhook",
    "logging": "postbus.telemetry",
    "opentelemetry": "postbus.telemetry",
    "prometheus_client": "postbus.telemetry",
    "pydantic_settings": "postbus.config",
    "rich": "postbus.cli",
    "sqlite3": "postbus.bridge.spool.database",
    "starlette": "postbus.sidecar",
    "typer": "postbus.cli",
    "uvicorn": "postbus.sidecar",
    "yaml": "postbus.config",
}
"""Each library, and the one module or package that may import it (and maps its exceptions)."""

TOP_LEVEL = re.compile(
    r"pyproject\.toml|README\.md|Dockerfile|helm|src|tests|LICENSE|CHANGELOG\.md|CONTRIBUTING\.md|docs|requirements[a-z-]*\.lock|\..+"
)

MODULE_MAX_LINES = 700
"""Beyond it a wall is missing. The design's rooms are small; the few long ones are tables."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports whom in postbus, the libraries included."""
    return grimp.build_graph("postbus", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_a_library_has_one_owner(graph: grimp.ImportGraph, library: str, owner: str) -> None:
    """Only the owner imports the library, so that its exceptions are mapped once and it can be replaced in one place."""
    importers = graph.find_modules_that_directly_import(library) if library in graph.modules else set()
    assert set() == {name for name in importers if name != owner and not name.startswith(f"{owner}.")}


def test_every_dependency_is_imported_and_has_a_reason() -> None:
    """pyproject.toml says on each dependency's line which module owns it."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f'"{requirement}"')]
        assert re.search(r"# [a-z/, ]+: \S", line), f"no owner and reason behind {requirement}"


def test_the_top_level_holds_what_the_design_lists() -> None:
    """A newcomer sees few names."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert set() == {name for name in (path.split("/")[0] for path in tracked) if not TOP_LEVEL.fullmatch(name)}


@pytest.mark.parametrize("lock", sorted(ROOT.glob("requirements*.lock")), ids=lambda path: path.name)
def test_locks_name_no_index(lock: Path) -> None:
    """Lock files name packages, versions and hashes, never an address."""
    assert [] == [line for line in lock.read_text("utf-8").splitlines() if re.search(r"://|--(extra-)?index-url|--find-links", line)]


def test_modules_are_small() -> None:
    """A module that grows beyond this holds two rooms."""
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert {} == {str(path): lines for path, lines in lengths.items() if lines > MODULE_MAX_LINES}


def test_no_check_is_silenced_without_its_code() -> None:
    """A suppression names what it suppresses; coverage is never told to look away in what is measured."""
    loose = re.compile(r"type: ignore(?!\[)|# noqa(?!:)|pragma: no cover|\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "src").rglob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if loose.search(line)
    ]
    assert [] == found
