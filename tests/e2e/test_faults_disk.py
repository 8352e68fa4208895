"""Disks that are full, that fail, that are not what was written: senders keep their mail by 452 or 451, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import smtplib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import peers
from tests.e2e.conftest import Start
from tests.e2e.harness import Postbus, tree, wait_until
from tests.e2e.load import Load, judge, unchanged
from tests.e2e.published import Published
from tests.e2e.receiver import receiving
from tests.e2e.senders import Desk, Letter, Traffic, send_until

MIB = 1_048_576
VOLUME_OCTETS = 96 * MIB
BOUND_OCTETS = 16 * MIB


# --- full


def test_no_disk_to_hold_on(start: Start) -> None:
    """Where nothing is spooled, connections are turned away while large content would find no room."""
    route = {"name": "all", "match": "*", "sinks": "file", "acceptance": "hold"}
    postbus = start(tree(routes=[route], spool={"free_min_octets": 1 << 60}))
    with pytest.raises(smtplib.SMTPConnectError, match=r"4\.3\.1"), postbus.smtp():
        pass


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A small file system of the test's own."""
    place = tmp_path / "volume"
    place.mkdir()
    mount = peers.need("mount", "install the package mount")
    options = ["-t", "tmpfs", "-o", f"size={VOLUME_OCTETS}", "tmpfs", str(place)]
    done = subprocess.run([mount, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        peers.missing("a file system of the test's own", f"run as root with CAP_SYS_ADMIN: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([peers.need("umount", "install the package mount"), "--lazy", str(place)], check=True)


@contextmanager
def filled(volume: Path) -> Iterator[None]:
    """Leave no octet free, and give all back at the end."""
    filler = volume / "filler"
    with filler.open("wb", buffering=0) as file:
        for step in (MIB, 4096):
            try:
                while file.write(b"\0" * step) == step:
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize(
    "free_min_octets",
    [pytest.param(BOUND_OCTETS, id="below its bound"), pytest.param(0, id="to the last octet")],
)
async def test_a_full_disk(start: Start, volume: Path, free_min_octets: int) -> None:
    """452 while there is no room, the process alive and its page telling; all goes on when room is made, and nothing is lost or doubled."""
    spool = {"folder": str(volume / "spool"), "free_min_octets": free_min_octets, "ballast_octets": 0}
    postbus = await asyncio.to_thread(start, tree(spool=spool))
    pid, load = postbus.pid, Load(postbus, big_every=5)
    with load.cancelled():
        await load.more()
        with filled(volume):
            await load.refusals(20, code=452)
            before = len(load.traffic.acknowledged)
            await load.refusals(40, code=452)
            if free_min_octets:
                assert before == len(load.traffic.acknowledged)
            assert 200 == (await asyncio.to_thread(postbus.get, "/livez")).code
            assert 0 < await asyncio.to_thread(postbus.metric, "postbus_commands_rejected_total", code="452")
        await load.more()
        await load.end()
    assert load.traffic.refused.keys() <= {451, 452}
    await asyncio.to_thread(postbus.wait_delivered)
    _published_once(postbus, load)
    unchanged(postbus, pid)


def _published_once(postbus: Postbus, load: Load) -> None:
    """Everything acknowledged came once: what was refused first has left nothing behind."""
    published = Published().take_structured(postbus.events())
    judge(published, load)
    assert ([], 0) == (published.renamed, published.duplicates)


# --- failing


def _fail(postbus: Postbus, call: str, selection: list[str]) -> None:
    """Let the process's system call *call* fail with EIO, as on a sick disk, until the spool has noticed; strace's *selection* of files."""
    strace = peers.need("strace", "install the package strace")
    rule = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO", *selection]
    command = [strace, "-f", "-qq", "-o", str(postbus.folder / "strace"), *rule, "-p", str(postbus.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: _traced(postbus.pid) or tracer.poll() is not None, "strace attached")
        if tracer.poll() is not None:
            assert tracer.stderr is not None
            peers.missing("ptrace", f"allow one process to trace another: {tracer.stderr.read().strip()}")
        postbus.log.wait("spool.failed")
    finally:
        tracer.terminate()
        tracer.communicate()


def _traced(pid: int) -> bool:
    states = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all("TracerPid:\t0\n" not in state for state in states)


@pytest.mark.parametrize(
    ("call", "selection"),
    [
        pytest.param("fdatasync", lambda spool: ["-P", str(spool / "spool.db-wal")], id="the log's sync"),
        pytest.param("pwrite64", lambda spool: ["-P", str(spool / "spool.db-wal")], id="a write to the log"),
        pytest.param("fsync", lambda spool: [], id="a body's sync"),
    ],
)
async def test_a_disk_that_fails(start: Start, call: str, selection: Callable[[Path], list[str]]) -> None:
    """Senders are asked to come again; the spool opens anew by itself when the disk works, and each mail is published once."""
    postbus = await asyncio.to_thread(start, tree())
    pid, load = postbus.pid, Load(postbus, big_every=5)
    with load.cancelled():
        await load.more()
        refusals = asyncio.create_task(load.refusals(1))
        await asyncio.to_thread(_fail, postbus, call, selection(postbus.folder / "spool"))
        await refusals
        await load.more()
        await load.end()
    assert load.traffic.refused.keys() <= {451, 452}
    assert [] != postbus.log.find("spool.reopened")
    await asyncio.to_thread(postbus.wait_delivered)
    _published_once(postbus, load)
    unchanged(postbus, pid)
    assert 0 == await asyncio.to_thread(postbus.terminate)


# --- damaged

LETTERS = 12
BIG = (3, 6, 9, 12)  # every third


def _rows(spool: Path) -> dict[str, tuple[int, str | None]]:
    """Return (seq, file) of each message in a spool that nobody owns, by the digest of its content."""
    with closing(sqlite3.connect(spool / "spool.db")) as database:
        rows = database.execute("SELECT seq, file, mail FROM message").fetchall()
    return {json.loads(mail)["mail"]["sha256"]: (seq, file) for seq, file, mail in rows}


def _garble(spool: Path, statement: str, seq: int) -> None:
    with closing(sqlite3.connect(spool / "spool.db")) as database:
        assert 1 == database.execute(f"UPDATE message SET {statement} WHERE seq = ?", (seq,)).rowcount
        database.commit()


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"something else")


DAMAGE: dict[int, Callable[[Path, int, Path], object]] = {
    1: lambda spool, seq, _: _garble(spool, "body = zeroblob(length(body))", seq),
    4: lambda spool, seq, _: _garble(spool, "mail = CAST(replace(mail, 'a', 'b') AS BLOB)", seq),
    5: lambda spool, seq, _: _garble(spool, "body = substr(body, 2)", seq),
    3: lambda _, __, path: path.unlink(),
    6: lambda _, __, path: _truncate(path),
    9: lambda _, __, path: _alter(path),
}
"""What is done to which letter, by serial: row damage to small ones, damage of their files to big ones."""


async def test_damage_is_set_aside(start: Start) -> None:
    """Garbled rows and missing, cut or altered files are told in log, metric and status, and set aside; the rest is delivered."""
    async with receiving() as receiver:
        await receiver.leave()
        postbus = await asyncio.to_thread(start, _away(receiver.url))
        letters, spool = await _fill(postbus), postbus.folder / "spool"
        await asyncio.to_thread(postbus.kill)
        rows = _rows(spool)
        for serial, damage in DAMAGE.items():
            seq, file = rows[letters[serial].sha256]
            assert (serial in BIG) == (file is not None)
            damage(spool, seq, spool / "bodies" / (file or "none"))
        await receiver.listen()
        whole = {key for serial, letter in letters.items() if serial not in DAMAGE for key in letter.keys}
        for _ in range(2):  # what was set aside stays so
            await asyncio.to_thread(postbus.start)
            await asyncio.to_thread(postbus.wait_delivered)
            assert len(DAMAGE) == postbus.status()["spool"]["damaged"]
            assert len(DAMAGE) == postbus.metric("postbus_spool_damaged")
            assert whole == Published().take_structured(receiver.taken).ids.keys()
            [late] = (await _fill(postbus, 1, stem="late")).values()
            whole |= late.keys
            await asyncio.to_thread(postbus.wait_delivered)
            assert whole == Published().take_structured(receiver.taken).ids.keys()
            assert 0 == await asyncio.to_thread(postbus.terminate)
            if postbus.runs == 2:
                assert len(DAMAGE) == len(postbus.log.find("spool.damaged"))
        with closing(sqlite3.connect(spool / "spool.db")) as database:
            assert [(len(DAMAGE),)] == database.execute("SELECT count(*) FROM message").fetchall()


async def test_an_unreadable_database_is_set_aside(start: Start) -> None:
    """A database that is none any more is kept for a look, told of, and a new one takes mail."""
    async with receiving() as receiver:
        await receiver.leave()
        postbus = await asyncio.to_thread(start, _away(receiver.url))
        spool = postbus.folder / "spool"
        await _fill(postbus)
        assert 0 == await asyncio.to_thread(postbus.terminate)
        with (spool / "spool.db").open("r+b") as file:
            file.write(b"not a database any more, and nothing else")
        await receiver.listen()
        await asyncio.to_thread(postbus.start)
        [told] = postbus.log.find("spool.damaged", what="database")
        place = Path(told["place"])
        assert spool / "damaged" == place.parent
        assert len(BIG) == len(list((place / "bodies").iterdir()))
        assert 1 == postbus.status()["spool"]["damaged"]
        [letter] = (await _fill(postbus, 1, stem="late")).values()
        await receiver.until(lambda: receiver.taken, "a fresh mail")
        assert letter.keys == Published().take_structured(receiver.taken).ids.keys()


def _away(url: str) -> dict[str, Any]:
    """Return a configuration whose receiver is away at first, and soon found when it is back."""
    retry = {"first_delay_s": 0.1, "max_delay_s": 0.5}
    sink = {"kind": "webhook", "url": url}
    return tree(sinks={"file": sink}, retry=retry)


async def _fill(postbus: Postbus, count: int = LETTERS, stem: str = "r") -> dict[int, Letter]:
    """Send *count* letters, every third of them big; return them by serial, all acknowledged."""
    desk, traffic = Desk(stem + str(postbus.runs), big_every=3, recipients_max=1), Traffic()
    letters = {letter.serial: letter for letter in (desk.letter() for _ in range(count))}
    await send_until(traffic, postbus.address(), letters.values())
    assert {key for letter in letters.values() for key in letter.keys} == traffic.acknowledged.keys()
    return letters
