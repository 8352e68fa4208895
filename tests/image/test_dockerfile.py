"""The Dockerfile and its locks, without building."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
LOCKS = {
    "requirements.lock": [*PROJECT["dependencies"], *OPTIONAL["otlp"]],
    "requirements-test.lock": [*PROJECT["dependencies"], *OPTIONAL["otlp"], *OPTIONAL["test"]],
    "requirements-build.lock": ["hatchling", "hatch-mypyc"],
}

PIN = r"^([A-Za-z0-9._-]+)==([^ ;\\]+)(?: ;[^\\\n]*)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
"""A package with its version, perhaps a condition, and its hashes."""

every_lock = pytest.mark.parametrize(("lock", "required"), LOCKS.items(), ids=LOCKS)


def pinned(lock: str) -> dict[str, str]:
    """Return the version that *lock* pins of each package; every one must have hashes."""
    text = (ROOT / lock).read_text()
    pins = re.findall(PIN, text, re.MULTILINE)
    assert len(re.findall(r"^[A-Za-z]", text, re.MULTILINE)) == len(pins), "a line without version or hash"
    return {canonicalize_name(name): version for name, version in pins}


def test_hadolint_is_silent() -> None:
    """The linter for Dockerfiles has nothing to say."""
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (said.returncode, said.stdout + said.stderr)


@every_lock
def test_the_lock_holds_what_the_project_asks_for(lock: str, required: list[str]) -> None:
    """Every dependency of pyproject.toml is pinned, with hashes, in a version that pyproject.toml allows."""
    pins = pinned(lock)
    for requirement in map(Requirement, required):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)], prereleases=True), requirement


@every_lock
def test_the_lock_names_no_index(lock: str, required: list[str]) -> None:
    """A lock says what, never from where."""
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links", text)


def test_the_locks_agree() -> None:
    """The tests run with the versions the image ships."""
    shipped, tested = pinned("requirements.lock"), pinned("requirements-test.lock")
    assert shipped == {name: tested[name] for name in shipped}


def test_the_label_is_the_version() -> None:
    """The image's version label is the project's, unless the build says otherwise."""
    assert f"ARG VERSION={PROJECT['version']}\n" in (ROOT / "Dockerfile").read_text()


def test_the_context_is_what_the_dockerfile_copies() -> None:
    """Nothing else of the working folder reaches the build, and so the image."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(allowed) == sorted(word for line in copied for word in line.split())
