"""The package as the image has it, what every mail passes through compiled to C (pyproject.toml): a folder for ``PYTHONPATH``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.peers import need

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src")
BUILD_TIMEOUT_S = 600
REMEDY = "apt-get install gcc libc6-dev"


def tree() -> Path:
    """Return the folder with the compiled package; made when the sources are new (two minutes), then kept in the user's cache folder."""
    need("gcc", REMEDY)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "postbus-tests"
    made = cache / f"compiled-{_fingerprint()}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            draft = _built(Path(folder))
            for old in cache.glob("compiled-*"):
                shutil.rmtree(old)
            draft.rename(made)
    return made


def environment() -> dict[str, str]:
    """Return the environment in which a program finds the compiled package before any other."""
    return {**os.environ, "PYTHONPATH": str(tree())}


def _fingerprint() -> str:
    """Return what the sources and the interpreter come to, in a few letters."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted([ROOT / "pyproject.toml", *(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.json")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _built(folder: Path) -> Path:
    """Build the wheel from a copy, since the hook moves pyproject.toml while it works; return it unpacked."""
    copy = folder / "copy"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir=dist", "."]
    hooked = os.environ | {"HATCH_BUILD_HOOK_ENABLE_MYPYC": "true"}
    done = subprocess.run(command, cwd=copy, env=hooked, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    (wheel,) = (copy / "dist").glob("*.whl")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked
