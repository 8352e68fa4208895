"""A Node program that consumes: its packages installed from the lock, its answers to one question after the other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.peers import missing, need

HERE = Path(__file__).parent
LOCK = HERE / "package-lock.json"
REMEDY = "install Node.js 20 or later, which brings npm"
INSTALL_TIMEOUT_S = 300
STOP_TIMEOUT_S = 20


class Javascript:
    """The program ``answers.js``, for ``with``. *schema* is a file with the published schema."""

    def __init__(self, node: str, schema: Path) -> None:
        self._command = [node, str(HERE / "answers.js"), str(schema)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=STOP_TIMEOUT_S)  # it ends with its input

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to *question*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the program has ended: see its standard error"
        answer: dict[str, Any] = json.loads(line)
        return answer


def installed() -> str:
    """Return the path of ``node`` once the packages of the lock are beside the program; the test ends when one cannot be had."""
    node, npm = need("node", REMEDY), need("npm", REMEDY)
    kept = HERE / "node_modules" / ".package-lock.json"  # npm writes it last
    if kept.exists() and kept.stat().st_mtime >= LOCK.stat().st_mtime:
        return node
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
    if done.returncode != 0:
        missing("what package-lock.json lists", f"npm could not install it: {done.stderr[-2000:]}")
    return node
