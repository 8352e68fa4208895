"""The log: what a line looks like, what it never shows, and what happens when nobody reads it."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from postbus.telemetry.encoding import LINE_MAX_OCTETS, escape
from postbus.telemetry.lines import Log, Writer, _Adapter

NASTY = "a\x1b[31mred\x07\r\nfake\x00\x7f\x9b2J\u2028\u202e end"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def out(tmp_path: Path, root: logging.Logger) -> Path:
    """A file for lines."""
    return tmp_path / "log"


def written(path: Path, **settings: object) -> Log:
    """Return a log that writes to *path*."""
    log = Log()
    log.configure(descriptor=os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), **settings)  # type: ignore[arg-type]
    return log


def records(path: Path, log: Log) -> list[dict[str, object]]:
    """Return what was logged."""
    log.close()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_is_one_object(out: Path) -> None:
    """Time, level and event come first; keys follow; None is left out; other types are shown somehow."""
    log = written(out)
    log.log("info", "session.closed", code=250, seconds=0.5, tls=None, ok=True, name="straße", path=Path("/x"))
    (record,) = records(out, log)
    assert ["ts", "level", "event", "code", "seconds", "ok", "name", "path"] == list(record)
    assert ("info", "session.closed", 250, "straße") == (record["level"], record["event"], record["code"], record["name"])
    assert str(record["ts"]).endswith("Z")
    assert 24 == len(str(record["ts"]))


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_nothing_from_a_peer_steers_a_terminal(out: Path, log_format: str) -> None:
    """Controls, line ends and direction marks appear as text, in the raw line and in the decoded value."""
    log = written(out, log_format=log_format)
    log.log("info", "session.closed", helo=NASTY, **{"odd\nkey": "x"})
    log.close()
    raw = out.read_text("utf-8")
    assert 1 == raw.count("\n")
    shown = raw if log_format == "text" else "".join(map(str, json.loads(raw).values())) + raw.rstrip("\n")
    assert not [character for character in shown.rstrip("\n") if not character.isprintable()]
    assert "\\u001b[31mred" in shown


@pytest.mark.parametrize("value", ["\ud800", 2**70, object(), b"\xff", {"a": {1, 2}}, float("nan"), "x" * 100_000, {"deep": "y" * 50_000}])
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_odd_values_make_bounded_lines(out: Path, log_format: str, value: object) -> None:
    """Whatever a value is, a line is written, and it is not longer than it may be."""
    log = written(out, log_format=log_format)
    log.log("info", "odd.value", value=value, **{f"key{index}": "z" * 5_000 for index in range(20)})
    log.close()
    lines = out.read_bytes().splitlines()
    assert 1 == len(lines)
    assert len(lines[0]) <= LINE_MAX_OCTETS * 3
    assert b"odd.value" in lines[0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        pytest.param("domain", ["@example.com", "@evil.example", "@", "<>"], id="domain"),
        pytest.param("full", ["Bob@example.com", '"a@b"@evil.example', "postmaster", "<>"], id="full"),
        pytest.param("none", ["-", "-", "-", "<>"], id="none"),
    ],
)
def test_addresses_show_as_allowed(out: Path, mode: str, expected: list[str]) -> None:
    """log_addresses decides; the null sender is no secret."""
    log = written(out, addresses=mode)
    assert expected == [log.address(text) for text in ("Bob@example.com", '"a@b"@evil.example', "postmaster", "")]
    log.close()


def test_hashed_addresses_can_be_joined(out: Path) -> None:
    """The same address gives the same hash, whatever its case, and nothing of it shows."""
    log = written(out, addresses="hash")
    assert log.address("Bob@example.com") == log.address("bob@EXAMPLE.com") != log.address("eve@example.com")
    assert "example" not in log.address("bob@example.com")
    assert log.address("\ud800@x")
    log.close()


def test_levels(out: Path) -> None:
    """What is less serious than asked for is not written."""
    log = written(out, level="warning")
    log.log("debug", "some.event")
    log.log("info", "some.event")
    log.log("warning", "some.event")
    log.log("error", "some.event")
    assert ["warning", "error"] == [record["level"] for record in records(out, log)]


def test_dependencies_are_heard_from_warning_on(out: Path) -> None:
    """Their records become lines, bounded and with traceback; their debug and info never do, aiokafka's least of all."""
    log = written(out, level="debug")
    logging.getLogger("aiokafka.conn").debug("canary-body")
    logging.getLogger("httpx").info("GET https://x/?canary-token")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("asyncio").error("Task %s\x1b failed", "x" * 10_000, exc_info=ValueError("why"))
    logging.getLogger("aiokafka").warning("cluster changed")
    failed, changed = records(out, log)
    assert ("dependency.error", "asyncio", "error") == (failed["event"], failed["logger"], failed["level"])
    assert str(failed["message"]).startswith("Task xxx")
    assert isinstance(failed["traceback"], list)
    assert "ValueError: why" == failed["traceback"][-1]
    assert ("dependency.warning", "cluster changed") == (changed["event"], changed["message"])


def test_configuring_again_keeps_one_adapter(out: Path, root: logging.Logger) -> None:
    """A reload does not double every line."""
    log = written(out)
    log.configure(descriptor=os.open(out, os.O_WRONLY | os.O_APPEND))
    logging.getLogger("other").warning("once")
    assert 1 == len(records(out, log))


def test_text_for_people(out: Path) -> None:
    """Readable lines: time of day, level, event, pairs, quotes where needed; a traceback on lines of its own, indented."""
    log = written(out, log_format="text")
    log.log("warning", "sink.down", sink="orders", why='said "no" twice', traceback="Traceback:\n  here\x1b")
    log.close()
    first, *more = out.read_text().splitlines()
    assert 'warning sink.down sink=orders why="said \\"no\\" twice"' == first[13:]
    assert ["    Traceback:", "      here\\u001b"] == more


def test_a_terminal_gets_colours() -> None:
    """Auto means coloured text on a terminal."""
    main, terminal = pty.openpty()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log = Log()
    log.configure(descriptor=terminal)
    log.log("info", "hello.there", a=1)
    log.close()
    shown = os.read(main, 1_000)
    root.handlers[:], root.level = handlers, level
    os.close(main)
    os.close(terminal)
    assert (b"\x1b[1mhello.there\x1b[0m a=1" in shown) is ("NO_COLOR" not in os.environ)


def test_without_configuration_the_standard_library_decides(caplog: pytest.LogCaptureFixture) -> None:
    """The library in somebody else's program speaks through the logger named postbus."""
    log = Log()
    with caplog.at_level(logging.WARNING, "postbus"):
        log.log("info", "not.shown")
        log.log("error", "handler.failed", hook="handle_DATA", why="a\nb")
    assert ['error   handler.failed hook=handle_DATA why="a\\u000ab"'] == [record.message for record in caplog.records]


def test_our_own_lines_do_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    """Between two configurations the root logger's handler is ours while our lines go through the standard library: each once."""
    log = Log()
    adapter = _Adapter(log)
    logging.getLogger().addHandler(adapter)
    try:
        log.log("error", "handler.failed")
    finally:
        logging.getLogger().removeHandler(adapter)
    assert ["error   handler.failed"] == [record.message for record in caplog.records]


def test_a_stuck_reader_costs_lines_not_time() -> None:
    """Once the pipe and the queue are full, lines are dropped and counted; when somebody reads again, writing goes on."""
    read, write = os.pipe()
    writer = Writer(write, max_octets=100_000, gather_s=0.0)
    line = b"x" * 999 + b"\n"
    for _ in range(2_000):
        writer.put(line)
    assert writer.dropped >= 2_000 - 100 - 65 - 110
    assert not writer.close(timeout_s=0.05)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(read, 65_536), b"")))
    reader.start()
    assert writer.close(timeout_s=10)
    os.close(write)
    reader.join(10)
    os.close(read)
    assert 2_000 == len(b"".join(received).splitlines()) + writer.dropped


def test_a_closed_standard_error_is_survived() -> None:
    """Nobody is left to tell; lines are counted as dropped."""
    read, write = os.pipe()
    os.close(read)
    writer = Writer(write, gather_s=0.0)
    writer.put(b"lost\n")
    assert writer.close(timeout_s=10)
    os.close(write)
    assert 1 == writer.dropped


def test_lines_are_out_at_exit_and_soon_before() -> None:
    """A program that ends at once has written everything, and one that lives has within a moment."""
    program = (
        "import sys\nfrom postbus import telemetry\n"
        "telemetry.configure(log_format='json')\n"
        "telemetry._log('info', 'first.line')\n"
        "sys.stdin.readline()\n"
        "telemetry._log('info', 'last.line')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ) as process:
        assert process.stdin
        assert process.stderr
        assert b"first.line" in process.stderr.readline()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert b"last.line" in process.stderr.read()
        assert 0 == process.wait()


def test_escape_leaves_ordinary_text_alone() -> None:
    """Letters of every script stay as they are."""
    assert "Zoë Ω 漢字 👍 straße" == escape("Zoë Ω 漢字 👍 straße")
