"""The compiled package is the same program: what tests the compiled rooms passes on it too, and it loses nothing when it is killed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import builds
from tests.compiled import ROOT, environment, tree

MODULES = (
    "smtp.engine",
    "event.mime",
    "bridge.intake",
    "bridge.lane",
    "bridge.parsing_here",
    "bridge.spool.core",
    "server.connection",
    "server.dialog",
    "server.link",
    "sinks.deadlines",
    "sinks.file.sink",
    "sinks.kafka.sink",
    "sinks.turns",
    "telemetry.encoding",
    "telemetry.mail",
    "telemetry.numbers",
)
WHERE = f"import importlib; [print(importlib.import_module('postbus.' + name).__file__) for name in {MODULES}]"
ROOMS = (
    "tests/smtp",
    "tests/event",
    "tests/fuzz",
    "tests/bridge",
    "tests/sinks/file",
    "tests/sinks/test_turns.py",
    "tests/sinks/test_budget.py",
    "tests/sinks/test_deadlines.py",
    "tests/telemetry",
)
BESIDE = (
    "tests/sinks/test_kafka.py",
    "tests/server",
    "--deselect=tests/server/test_parity.py::test_every_difference_is_explained",  # the names of arguments of what C calls by position
)
"""These wait for a broker, or for timers, most of the time, so they run beside the others."""
NEVER_WAIT = re.compile(r"asyncio\.timeout(_at)?\(.*\)|[a-z.]+\.(lock|reading|_one_at_a_time)")
"""Deadlines and locks: their ``__aexit__`` returns without having waited."""
TIMEOUT_S = 600
KILL_ROUNDS = 3


def compiled_surroundings() -> dict[str, str]:
    """Return the environment in which programs are the compiled package; asserts that they are."""
    found = environment()
    files = subprocess.run([sys.executable, "-c", WHERE], env=found, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [".so"] * len(MODULES) == [name[-3:] for name in files]
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_tree")
@pytest.mark.timeout(TIMEOUT_S + builds.TIMEOUT_S)
def test_compiled_rooms_pass_their_tests() -> None:
    """Every test of the compiled rooms passes on machine code: dialogs, the attack table at every split, properties, fuzz targets."""
    surroundings = compiled_surroundings()

    def run(rooms: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *rooms]
        return subprocess.run(command, env=surroundings, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(run, (ROOMS, BESIDE)):
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_tree")
@pytest.mark.timeout(TIMEOUT_S + builds.TIMEOUT_S)
def test_nothing_compiled_waits_while_an_exception_is_handled() -> None:
    """No ``await`` in ``except`` or ``finally``: mypyc leaves that exception with the thread, the context of every later one.

    The end of an ``async with`` is such a place too, so only those are used whose end never waits.
    """
    package = tree()
    sources = [file.with_name(f"{file.name.partition('.')[0]}.py") for file in (package / "postbus").rglob("*.so")]
    assert len(sources) > len(MODULES)
    assert [] == [f"{source.relative_to(package)}:{line}" for source in sources for line in waits_in_handlers(source.read_text())]


def waits_in_handlers(source: str) -> list[int]:
    """Return the lines of *source* that wait inside ``except`` or ``finally``, or may wait at the end of an ``async with``."""
    parsed = ast.parse(source)
    found = {
        node.lineno
        for node in ast.walk(parsed)
        if isinstance(node, ast.AsyncWith) and not all(NEVER_WAIT.fullmatch(ast.unparse(item.context_expr)) for item in node.items)
    }
    handlers: list[ast.stmt] = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.Try | ast.TryStar):
            handlers += [*node.finalbody, *(statement for handler in node.handlers for statement in handler.body)]
    waits = (ast.Await, ast.AsyncWith, ast.AsyncFor, ast.Yield, ast.YieldFrom)
    return sorted(found | {node.lineno for statement in handlers for node in ast.walk(statement) if isinstance(node, waits)})


def test_waits_in_handlers_are_found() -> None:
    """What the test above would say, of a source that has them and of one that has none."""
    context = "async def f():\n async with {}:\n  pass\n"
    assert ([2], []) == tuple(waits_in_handlers(context.format(text)) for text in ("client()", "asyncio.timeout(1)"))
    source = "async def f():\n try:\n  await g()\n except E:\n  {}\n finally:\n  {}\n"
    assert ([5], [7], []) == tuple(
        waits_in_handlers(source.format(*pair)) for pair in (("await g()", "g()"), ("g()", "await g()"), ("g()", "g()"))
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_tree")
@pytest.mark.timeout(TIMEOUT_S + builds.TIMEOUT_S)
def test_compiled_program_loses_nothing_when_it_is_killed() -> None:
    """Some rounds of kill -9 under load, as for the sources; the ledger's exit code is the verdict. Memory given back is spoilt."""
    command = [sys.executable, "-m", "tests.e2e.ledger", "--rounds", str(KILL_ROUNDS)]
    done = subprocess.run(
        command,
        env=compiled_surroundings() | {"PYTHONMALLOC": "debug"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
