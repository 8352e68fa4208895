"""Where mail is parsed: here and at once, or in processes that may die of it."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import psutil
import pytest

from postbus.bridge.parsing import Parser
from postbus.bridge.parsing_settings import ParsingSettings
from postbus.bridge.renderer import ParserUnavailableError
from postbus.event import mime
from postbus.event.parsed import Parsed
from tests.event.samples import PLAIN, multipart, nested

MIB = 1024 * 1024
APART = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nbody"
"""The smallest message that is parsed apart."""


@pytest.fixture
async def parser() -> AsyncIterator[Parser]:
    """A parser with one process at most, bounded tightly."""
    found = Parser(ParsingSettings(workers=1, cpu_max_s=3, wall_max_s=20, memory_max_octets=512 * MIB))
    await found.start()
    yield found
    await found.stop()


def children() -> list[psutil.Process]:
    """Return our parser processes."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any("parsing_worker" in word for word in process.cmdline()):
                found.append(process)
    return found


async def started() -> psutil.Process:
    """Wait for a parser process and return it."""
    async with asyncio.timeout(10):
        while not (found := children()):
            await asyncio.sleep(0)
    return found[0]


async def dead(process: psutil.Process) -> None:
    """Wait until *process* has ended, and leave it to the loop to reap: whoever reaps has the exit code, and the loop wants it."""
    async with asyncio.timeout(10):
        with suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0)


def summary(found: Parsed) -> tuple[bool, set[str]]:
    """Return whether a message was readable, and its codes."""
    return found.readable, {defect.code for defect in found.defects}


async def test_small_plain_mail_is_parsed_here(parser: Parser) -> None:
    """No process is started for it."""
    assert mime.parse(PLAIN) == await parser.parse(PLAIN)
    assert [] == children()


async def test_what_no_place_may_parse_is_refused_here(parser: Parser) -> None:
    """The guard's no costs no process either."""
    found = await parser.parse(b"Subject: " + b"x" * 10 + b"\r\n" + b"Content-Type: x\r\n" * 1001)
    assert (False, {"mime.parts"}) == summary(found)
    assert [] == children()


@pytest.mark.parametrize("spilled", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(APART, id="nested message"),
        pytest.param(multipart(b"\r\nx" * 50_000, b"Content-Type: a/b\r\n\r\n" + b"y" * 99_999), id="large"),
    ],
)
async def test_the_rest_is_parsed_apart_with_the_same_result(parser: Parser, tmp_path: Path, octets: bytes, spilled: bool) -> None:
    """In memory or in a file."""
    file = tmp_path / "body"
    file.write_bytes(octets)
    assert mime.parse(octets) == await parser.parse(file if spilled else octets)
    assert 1 == len(children())


async def test_a_spilled_message_is_guarded_apart(parser: Parser, tmp_path: Path) -> None:
    """Its octets are never read here."""
    file = tmp_path / "body"
    file.write_bytes(b"A: " + b"b" * 300_000)
    assert (False, {"header.block_too_large"}) == summary(await parser.parse(file))


async def test_contents_are_kept_as_asked(parser: Parser) -> None:
    """Attachments beyond the budget are told without their octets."""
    octets = multipart(b"Content-Type: message/rfc822\r\n\r\n" + b"x" * 1000)
    assert [(None, "too_large")] == [each[7:] for each in (await parser.parse(octets, inline_max_octets=10)).attachments]
    assert [(b"x" * 1000, None)] == [each[7:] for each in (await parser.parse(octets, inline_max_octets=2000)).attachments]


async def test_honest_mail_does_not_wait_for_mail_that_looks_costly() -> None:
    """Costly mail queues with its like for all processes but one, large plain mail for any."""
    parser = Parser(ParsingSettings(workers=2))
    costly = multipart(b"X: " + b"=?" * 24_000 + b"\r\n\r\nx") + b"\r\n" * 10_000
    assert "suspect" == mime.guard(costly).way
    tasks = [asyncio.create_task(parser.parse(costly)) for _ in range(12)]
    await asyncio.sleep(0)
    assert (await parser.parse(b"Subject: x\r\n\r\n" + b"y" * 100_000)).readable
    assert sum(task.done() for task in tasks) < 6
    assert 2 == len(children())
    await asyncio.gather(*tasks)
    await parser.stop()


async def test_one_process_serves_many_mails(parser: Parser) -> None:
    """It is kept, and leads to no second one even when jobs come at once."""
    await asyncio.gather(*(parser.parse(APART) for _ in range(20)))
    first = children()
    await parser.parse(APART)
    assert 1 == len(first)
    assert first == children()


async def test_a_worn_process_is_replaced() -> None:
    """So that its memory cannot creep."""
    parser = Parser(ParsingSettings(workers=1, jobs_max=2))
    await parser.parse(APART)
    first = children()
    await parser.parse(APART)
    assert [] == children()
    await parser.parse(APART)
    assert 1 == len(children())
    assert first != children()
    await parser.stop()


async def test_a_missing_file_is_the_callers_trouble(parser: Parser, tmp_path: Path) -> None:
    """It has a name, and the next mail is parsed."""
    with pytest.raises(FileNotFoundError, match="gone"):
        await parser.parse(tmp_path / "gone")
    assert (await parser.parse(APART)).readable


def hostile_base64() -> bytes:
    """Return 100,000 multiparts inside one another, hidden from the guard."""
    return b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(nested(100_000))


def encoded_words() -> bytes:
    """Return a part header at the edge of what the guard lets through: quadratic in the native parser."""
    return multipart(b"X: " + b"=?" * 48_000 + b"\r\n\r\nx")


def nested_messages() -> bytes:
    """Return 20 MB inside 200 messages, each level of which the native parser copies."""
    return b"Content-Type: message/rfc822\r\n\r\n" * 200 + b"Subject: x\r\n\r\n" + b"A" * 20_000_000


def large_attachment() -> bytes:
    """Return an honest mail of 25 MB."""
    return multipart(b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(bytes(18 * MIB)))


# The tree of so many parts is about as large as the worker's memory. Python 3.14 needs more for it, so that bound comes first; compiled
# code takes a little room too, so either may.
MANY_PARTS = (
    ({"mime.parts"}, {"parser.died"})
    if mime.__file__.endswith(".so")
    else ({"parser.died"},)
    if sys.version_info >= (3, 14)
    else ({"mime.parts"},)
)

HOSTILE: list[tuple[str, Callable[[], bytes], bool, set[str] | tuple[set[str], ...]]] = [
    ("20,000 nested multiparts", lambda: nested(20_000), False, {"mime.parts"}),
    ("900 nested multiparts", lambda: nested(900), False, {"mime.malformed"}),
    ("100,000 nested multiparts in base64", hostile_base64, False, {"parser.died"}),
    ("quadratic encoded words in the header", lambda: b"Subject: " + b"?=?=" * 60_000 + b"\r\n\r\nx", False, {"mime.encoded_words"}),
    ("quadratic encoded words in a part", encoded_words, False, {"mime.encoded_words"}),
    ("a million tiny parts", lambda: multipart(b"\r\n") + b"--b\r\n\r\n" * 1_000_000, True, set()),
    ("a million tiny open parts", lambda: multipart()[:-7] + b"--b\r\n\r\n" * 1_000_000, False, MANY_PARTS),
    ("nested messages", nested_messages, False, {"parser.died"}),
    (
        "broken base64",
        lambda: multipart(b"Content-Transfer-Encoding: base64\r\n\r\n" + b"aGVsbG8\r\n" * 20_000 + b"a"),
        True,
        {"base64.invalid"},
    ),
    ("25 MB", large_attachment, True, set()),
    ("25 MB in one line", lambda: b"Subject: x\r\n\r\n" + b"a" * 25_000_000, True, set()),
    ("a million headers", lambda: b"A: b\r\n" * 1_000_000, False, {"header.block_too_large"}),
]


@pytest.mark.parametrize("spilled", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize(("make", "readable", "codes"), [pytest.param(*row, id=name) for name, *row in HOSTILE])
async def test_hostile_mail_harms_nobody(
    parser: Parser, tmp_path: Path, make: Callable[[], bytes], readable: bool, codes: set[str] | tuple[set[str], ...], spilled: bool
) -> None:
    """A verdict within seconds, bounded memory, this process alive, and plain mail parsed meanwhile without delay."""
    octets = make()
    file = tmp_path / "body"
    file.write_bytes(octets)
    before = psutil.Process().memory_info().rss
    began = perf_counter()
    task = asyncio.create_task(parser.parse(file if spilled else octets))
    waits = []
    while not task.done():
        asked = perf_counter()
        assert (await parser.parse(PLAIN)).readable
        waits.append(perf_counter() - asked)
        await asyncio.sleep(0)
    found = await task
    said = {defect.code for defect in found.defects} - {"charset.mismatch", "text.control"}
    assert readable == found.readable
    assert said in (codes if isinstance(codes, tuple) else (codes,))
    assert perf_counter() - began < 15
    assert sorted(waits)[len(waits) // 2] < 0.05
    assert psutil.Process().memory_info().rss - before < (64 * MIB if spilled else 64 * MIB + 2 * len(octets))
    assert all(child.memory_info().rss < 512 * MIB for child in children())
    assert (await parser.parse(APART)).readable


async def test_a_mail_that_needs_too_much_memory_is_published_raw(parser: Parser, tmp_path: Path) -> None:
    """A file without end stands for it; the process survives."""
    file = tmp_path / "endless"
    file.symlink_to("/dev/zero")
    assert (False, {"parser.memory"}) == summary(await parser.parse(file))
    assert (await parser.parse(APART)).readable


async def test_the_kernel_holds_the_bounds(parser: Parser) -> None:
    """Memory for the process, CPU time for the mail, no core dumps of other people's mail."""
    await parser.parse(APART)
    (child,) = children()
    assert (512 * MIB, 512 * MIB) == child.rlimit(psutil.RLIMIT_AS)
    assert (0, 0) == child.rlimit(psutil.RLIMIT_CORE)
    assert 3 <= child.rlimit(psutil.RLIMIT_CPU)[0] <= 5


async def test_a_mail_that_takes_too_long_has_to_come_again(tmp_path: Path) -> None:
    """A pipe nobody writes to is a parse that never ends; its process is killed. The clock on the wall says nothing of a mail."""
    parser = Parser(ParsingSettings(workers=1, wall_max_s=0.5))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ParserUnavailableError, match="in time"):
        await parser.parse(pipe)
    assert [] == children()
    assert (await parser.parse(APART)).readable
    await parser.stop()


async def test_a_process_that_died_between_mails_is_replaced(parser: Parser) -> None:
    """The next mail is not to blame."""
    await parser.parse(APART)
    (child,) = children()
    child.kill()
    await dead(child)
    assert (await parser.parse(APART)).readable


@pytest.mark.parametrize(
    ("sent", "readable", "codes"),
    [
        (signal.SIGKILL, True, set()),
        (signal.SIGTERM, True, set()),
        (signal.SIGSEGV, False, {"parser.died"}),
        (signal.SIGXCPU, False, {"parser.timeout"}),
    ],
)
async def test_what_a_death_in_the_middle_means(
    parser: Parser, tmp_path: Path, sent: signal.Signals, readable: bool, codes: set[str]
) -> None:
    """Killed from outside: another one tries. Meant for all of postbus: nothing. Its own crash, or the kernel's limit: published raw."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    task = asyncio.create_task(parser.parse(pipe))
    (await started()).send_signal(sent)
    if readable:
        await asyncio.to_thread(pipe.write_bytes, PLAIN)
    assert (readable, codes) == summary(await task)


async def test_a_cancelled_job_leaves_no_half_conversation(parser: Parser, tmp_path: Path) -> None:
    """Its process is ended; the next mail gets its own answer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    task = asyncio.create_task(parser.parse(pipe))
    await started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == children()
    assert mime.parse(APART) == await parser.parse(APART)


async def test_without_a_process_mail_has_to_come_again(parser: Parser, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the mail's, so no event may show it; once there is a process again, the mail is parsed."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent")
        with pytest.raises(ParserUnavailableError, match="no process"):
            await parser.parse(APART)
    assert (await parser.parse(APART)).readable


async def test_killed_from_outside_again_and_again(parser: Parser, tmp_path: Path) -> None:
    """By the kernel when memory is short, or by people: the mail has to come again, and is what it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    task = asyncio.create_task(parser.parse(pipe))
    dead: list[int] = []
    while not task.done():
        for child in children():
            if child.pid not in dead:
                dead.append(child.pid)
                child.kill()
        await asyncio.sleep(0)
    with pytest.raises(ParserUnavailableError, match="killed"):
        await task
    assert 2 == len(dead)


async def test_a_process_that_talks_nonsense_is_not_believed(parser: Parser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever it says, the verdict is raw."""
    for number, words in enumerate((b"P" + b"\x00" * 7 + b"\x02{}", b"P" + b"\xff" * 8, b"P\x00")):
        program = tmp_path / f"parser{number}"
        program.write_bytes(b"#!/bin/sh\nprintf '" + b"".join(b"\\%03o" % octet for octet in words) + b"'\nexit 3\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        assert (False, {"parser.died"}) == summary(await parser.parse(APART))


async def test_after_the_end_nothing_is_started(parser: Parser) -> None:
    """Small plain mail is still read."""
    await parser.parse(APART)
    await parser.stop()
    assert [] == children()
    with pytest.raises(ParserUnavailableError, match="stopped"):
        await parser.parse(APART)
    assert (await parser.parse(PLAIN)).readable


async def test_a_parser_process_sees_nothing_of_our_environment(parser: Parser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets stay here."""
    monkeypatch.setenv("POSTBUS__SECRET", "x")
    await parser.parse(APART)
    assert not [name for name in children()[0].environ() if name.startswith("POSTBUS")]
