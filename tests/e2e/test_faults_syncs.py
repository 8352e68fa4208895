"""What a 250 rests on, seen from the kernel: strace over the whole process while it takes mail over SMTP and LMTP.

For every 250 behind a dot that reached a socket, these had returned before that write began: the write of the message's row to the
spool's log and an fdatasync of that log begun after it; and for content in a file, all of its writes, then its fsync, then its
rename into ``bodies``, then an fsync of that folder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import peers
from tests.e2e.harness import Postbus, tree, wait_until
from tests.e2e.senders import BIG_OCTETS, Desk, Letter, Traffic, send_until, together

SENDERS = 6
LETTERS = 12  # of each sender
BIG_EVERY = 4

SOCKET_CALLS = {"write", "writev", "sendto", "sendmsg", "sendmmsg", "send"}
TRACED = sorted((SOCKET_CALLS - {"send"}) | {"pwrite64", "pwritev", "fsync", "fdatasync", "rename", "renameat", "renameat2"})
STRING_OCTETS = 17_000  # a page of the database is printed whole

CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
RESULT = re.compile(r"= (-?\d+)(?: E\w+.*)?$")

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
ACCEPTED = re.compile(rf"250 2\.0\.0 Ok: ({UUID})")
ROW = re.compile(rf'\{{\\"v\\":1,\\"mail\\":\{{\\"id\\":\\"({UUID})')
FILE_ROW = re.compile(rf'([0-9a-f]{{32}})(?:\\[0-7]{{1,3}}|\\.|[^\\]){{1,6}}?\{{\\"v\\":1,\\"mail\\":\{{\\"id\\":\\"({UUID})')
"""In a row the name of the body's file comes right before a checksum of up to six octets and the record (``tables.Row``)."""


@dataclass(frozen=True, slots=True)
class Call:
    """A system call's begin (*result* is ``None``) or its return."""

    thread: str
    name: str
    text: str
    result: int | None = None


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Yield begins and returns in the order in which they happened; a call that was not interrupted is both at once."""
    under_way: dict[str, str] = {}
    for line in lines:
        if resumed := RESUMED.match(line):
            thread, name, rest = resumed.groups()
            yield Call(thread, name, under_way.pop(thread), _result(rest))
        elif begun := CALL.match(line):
            thread, name, rest = begun.groups()
            yield Call(thread, name, rest)
            if rest.endswith("<unfinished ...>"):
                under_way[thread] = rest
            else:
                yield Call(thread, name, rest, _result(rest))


def _result(text: str) -> int:
    found = RESULT.search(text)
    return int(found[1]) if found else -1  # "= ?": the process ended in it


class Judge:
    """What is safe at a moment of the trace; raises AssertionError at the first 250 that rests on less than it promises."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.file_of: dict[str, str] = {}
        self.octets_of: dict[str, int] = {}
        self._in_log: set[str] = set()
        self._safe: set[str] = set()
        self._syncing: dict[str, set[str]] = {}
        self._written: dict[str, int] = {}
        self._file_syncing: dict[str, int] = {}
        self._file_synced: dict[str, int] = {}
        self._renamed: set[str] = set()
        self._folder_syncing: dict[str, set[str]] = {}
        self._folder_safe: set[str] = set()

    def see(self, call: Call) -> None:
        """Take one begin or return into account."""
        if call.name in SOCKET_CALLS and ACCEPTED.search(call.text) and "<socket:" in call.text:
            if call.result is None:
                for transaction in ACCEPTED.findall(call.text):
                    self._answered(transaction)
        elif call.name in {"pwrite64", "pwritev"} and "spool.db-wal>" in call.text:
            if call.result is not None and call.result > 0:
                self._in_log.update(ROW.findall(call.text))
                self.file_of |= {transaction: file for file, transaction in FILE_ROW.findall(call.text)}
        elif call.name in {"fsync", "fdatasync"}:
            self._synced(call)
        elif call.name == "write" and (spilled := re.search(r"/spill/([\w-]+)>", call.text)):
            if call.result is not None and call.result > 0:
                self._written[spilled[1]] = self._written.get(spilled[1], 0) + call.result
        elif call.name.startswith("rename") and (moved := re.search(r'/spill/([\w-]+)".*/bodies/(\w+)"', call.text)):
            self._moved(call, *moved.groups())

    def _synced(self, call: Call) -> None:
        thread, done = call.thread, call.result == 0
        if "spool.db-wal>" in call.text:
            if call.result is None:
                self._syncing[thread] = set(self._in_log)
            elif done:
                self._safe |= self._syncing.pop(thread)
        elif re.match(r"\d+<[^>]*/bodies>", call.text):
            if call.result is None:
                self._folder_syncing[thread] = set(self._renamed)
            elif done:
                self._folder_safe |= self._folder_syncing.pop(thread)
        elif spilled := re.search(r"/spill/([\w-]+)>", call.text):
            if call.result is None:
                self._file_syncing[spilled[1]] = self._written.get(spilled[1], 0)
            elif done:
                self._file_synced[spilled[1]] = self._file_syncing.pop(spilled[1])

    def _moved(self, call: Call, spilled: str, body: str) -> None:
        if call.result is None:
            assert spilled in self._file_synced, f"{body} was renamed before its fsync had returned"
        elif call.result == 0:
            self._renamed.add(body)
            self.octets_of[body] = self._file_synced[spilled]

    def _answered(self, transaction: str) -> None:
        assert transaction in self._safe, f"{transaction}: 250 before the log's fdatasync had returned"
        body = self.file_of.get(transaction)
        assert body is None or body in self._folder_safe, f"{transaction}: 250 before the folder's fsync had returned"
        self.accepted.append(transaction)


@pytest.mark.timeout(180)
async def test_every_250_follows_the_syncs_it_promises(tmp_path: Path) -> None:
    """No 250 behind a dot begins before the log, the body's file and its folder are on the disk: the kernel is the witness."""
    strace = peers.need("strace", "install the package strace")
    log = tmp_path / "trace"
    listeners = {"mx": {"address": "127.0.0.1:0"}, "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp"}}
    traffic, desk = Traffic(), Desk("s", big_every=BIG_EVERY)
    letters = iter([desk.letter() for _ in range(SENDERS * LETTERS)])
    postbus = Postbus(tmp_path, tree(listeners=listeners))
    # -D: the tracer steps aside, so that signals and exit code are postbus's own.
    prefix = [strace, "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-s", str(STRING_OCTETS), "-e", f"trace={','.join(TRACED)}"]
    try:
        postbus.start(prefix=[*prefix, "-e", "signal=none", "-o", str(log)])
        places = itertools.cycle([("mx", False), ("lmtp", True)])
        senders = [(postbus.address(name), lmtp) for name, lmtp in itertools.islice(places, SENDERS)]
        await together(send_until(traffic, address, letters, lmtp=lmtp) for address, lmtp in senders)
        assert 0 == postbus.terminate()
    finally:
        postbus.close()
    assert SENDERS * LETTERS == traffic.letters_acknowledged
    judge = _judged(log, set(traffic.acknowledged.values()))
    told = {transaction: traffic.sent[digest] for (digest, _), transaction in traffic.acknowledged.items()}
    big = {transaction for transaction, letter in told.items() if len(letter.content) >= BIG_OCTETS}
    assert SENDERS * LETTERS // BIG_EVERY == len(big)
    assert big == judge.file_of.keys()
    for transaction in big:
        assert len(told[transaction].content) == judge.octets_of[judge.file_of[transaction]]


def _judge(lines: Iterable[str]) -> Judge:
    """Return the verdict on a trace."""
    judge = Judge()
    for call in calls(lines):
        judge.see(call)
    return judge


def _judged(log: Path, told: set[str]) -> Judge:
    """Return the verdict on *log* once it holds all of what senders were *told*: the tracer may write a little longer than postbus."""

    def whole() -> Judge | None:
        judge = _judge(log.read_text(errors="replace").splitlines())
        return judge if told <= set(judge.accepted) else None

    judge = wait_until(whole, "every 250 in the trace")
    assert judge is not None
    assert told == set(judge.accepted)
    return judge


A = "01a20676-22cd-7c0d-b919-3ffe78e5eef7"
FILE = "4ba90166cd210285b5864e62adb3df41"
ROW_TEXT = rf"x]]{FILE}\201\2A{{\"v\":1,\"mail\":{{\"id\":\"{A}\",\"source\"".replace("{{", "{")
SOUND = [
    '7 write(20</s/spill/spill-ab>, "...", 300000) = 300000',
    "7 fsync(21</s/spill/spill-ab>) = 0",
    f'7 rename("/s/spill/spill-ab", "/s/bodies/{FILE}") = 0',
    "7 fsync(9</s/bodies>) = 0",
    f'8 pwrite64(11</s/spool.db-wal>, "{ROW_TEXT}"..., 16384, 16416) = 16384',
    "8 fdatasync(11</s/spool.db-wal> <unfinished ...>",
    '9 write(14<socket:[77]>, "354 Go ahead\\r\\n", 14) = 14',
    "8 <... fdatasync resumed>) = 0",
    f'9 write(14<socket:[77]>, "250 2.0.0 Ok: {A}\\r\\n", 52) = 52',
]


def test_the_judge_knows_a_sound_trace() -> None:
    """The order that the spool promises passes, and the judge sees what belongs together."""
    judge = _judge(SOUND)
    assert [A] == judge.accepted
    assert {A: FILE} == judge.file_of
    assert {FILE: 300_000} == judge.octets_of


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param([1], id="the body's fsync"),
        pytest.param([3], id="the folder's fsync"),
        pytest.param([5, 7], id="the log's fdatasync"),
        pytest.param([7], id="the return of the log's fdatasync"),
        pytest.param([4], id="the row"),
    ],
)
def test_the_judge_misses_nothing(missing: list[int]) -> None:
    """A trace without one of the calls is condemned; and so is one where it comes too late."""
    for late in (False, True):
        lines = [line for index, line in enumerate(SOUND) if index not in missing]
        lines += [SOUND[index] for index in missing] if late else []
        with pytest.raises(AssertionError, match=r"before|renamed"):
            _judge(lines)


def test_letters_are_big_enough() -> None:
    """What this file calls big is beyond what a row holds (256 KiB)."""
    letters: list[Letter] = [Desk("b", big_every=1).letter()]
    assert all(len(letter.content) > 262_144 for letter in letters)
