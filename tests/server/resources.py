"""What hostile clients cost: memory of the server, and how long somebody else had to wait meanwhile.

``python -m tests.server.resources [NAME ...]`` measures every row (or those named) as it stands and prints a table; the tests measure
the same rows with fewer connections. Server, load and onlooker each have a process or thread of their own. The onlooker says NOOP all
the time, on connections that it opens anew every so often; the longest it waited is the row's stall. Memory is the server's resident
memory at its highest, less that after a warm-up. Where the load comes by TLS, the onlooker has a plain listener of the same process: its
own handshakes would be most of what it waits for.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.bench.large import Peak
from tests.bench.measuring import child, line_of, listener
from tests.e2e.certificates import Authority
from tests.e2e.harness import wait_until

KIB = 1024
MIB = 1024 * KIB
STALL_MAX_S = 1.0
"""Generous: what is meant is not the speed, but that nobody is left waiting for somebody else's work to end."""
PROBE_PAUSE_S = 0.002
PROBES_PER_CONNECTION = 50
"""Below the limit on commands without mail between them."""
WARM_UP = 200
IDLE_S = 1.0
BESIDE_OCTETS = 12 * MIB
"""What any row may take in all: buffers of connections, fragments."""

PATIENT = {"limits": {"junk_max": 10_000_000, "junk_slow": 10_000_000}}
SHORT = {"timeouts": {"command_timeout_s": 2, "data_timeout_s": 2}}
"""Twice the interval of the sweep: marks are as old as its last look, so less would cut who has just spoken."""
SMALL = {"limits": {"message_max_octets": 2 * MIB}}
PLAIN_AUTH = {"auth": {"allow_plaintext": True}}


@dataclass(frozen=True, slots=True)
class Row:
    """One load.

    Attributes:
        load: of ``loads.LOADS``, or ``idle``; count: of connections, commands, chunks; fewer: the same in tests.
        each_max_octets: of memory, times the count.
        words: what must come of it; ``{count}`` is replaced.
        settings: of the listener.
        passwords: AUTH is offered; spill: large content goes to files, as in the bridge; tls: implicit TLS.
    """

    title: str
    load: str
    count: int
    fewer: int
    words: str
    each_max_octets: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    passwords: bool = False
    spill: bool = False
    tls: bool = False


ROWS: Mapping[str, Row] = {
    "idle-plain": Row("idle connections", "idle", 10_000, 2_000, "open {count}", 8 * KIB),
    "idle-tls": Row("idle connections, TLS", "idle", 10_000, 500, "open {count}", 48 * KIB, tls=True),
    "slow": Row("connections that send an octet now and then", "slow", 2_000, 300, "421:{count}", 16 * KIB, SHORT),
    "deaf": Row("connections that never read", "deaf", 200, 30, "ended:{count}", 512 * KIB, {**PATIENT, **SHORT}),
    "noops": Row("NOOPs in one segment", "noops", 43_000, 43_000, "554:1 ended:1"),
    "noops-allowed": Row(
        "NOOPs in one segment, allowed", "noops", 43_000, 43_000, "250:{count}", settings={**PATIENT, "strict_pipelining": False}
    ),
    "recipients": Row(
        "recipients in one transaction", "recipients", 5_000, 5_000, "250:5002 354:1", settings={"limits": {"recipients_max": 5_000}}
    ),
    "endless-command": Row("endless lines as a command", "endless_command", 50, 10, "ended:{count}"),
    "endless-content": Row("endless lines in DATA", "endless_content", 50, 5, "ended:{count}", 512 * KIB, SMALL, spill=True),
    "endless-auth": Row("endless lines in AUTH", "endless_auth", 50, 10, "ended:{count}", settings=PLAIN_AUTH, passwords=True),
    "endless-chunk": Row("endless lines behind BDAT", "endless_behind_chunk", 50, 10, "ended:{count}"),
    "chunks": Row("chunks of one octet", "chunks", 10_000, 10_000, "250:1000 421:1 ended:1"),
    "resets": Row("connections reset at once", "resets", 5_000, 900, "reset:{count}"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What one row cost."""

    row: Row
    count: int
    words: str
    grown_octets: int
    stall_s: float
    probes: int
    left_open: int

    @property
    def wanted(self) -> str:
        """What must come of it."""
        return self.row.words.format(count=self.count)

    @property
    def allowed_octets(self) -> int:
        """The most it may take."""
        return BESIDE_OCTETS + self.row.each_max_octets * self.count

    @property
    def wrong(self) -> str:
        """What is not as it must be; ``""`` when all is well."""
        faults = {
            f"answered {self.words}, not {self.wanted}": self.words != self.wanted,
            f"grew by {self.grown_octets / MIB:.1f} MiB, more than {self.allowed_octets / MIB:.1f}": self.grown_octets
            > self.allowed_octets,
            f"somebody waited {self.stall_s:.2f} s": self.stall_s > STALL_MAX_S,
            "nobody looked on": not self.probes,
            f"{self.left_open} descriptors were not let go": self.left_open > 0,
        }
        return "; ".join(text for text, is_so in faults.items() if is_so)


class Onlooker:
    """A well-behaved client: says NOOP and waits. *stall_s*: its longest wait; connecting and the banner count."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._end = threading.Event()
        self._error: Exception | None = None
        self.stall_s = 0.0
        self.probes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from a thread while the context lasts; what went wrong there is raised at its end."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
        if self._error is not None:
            raise self._error

    def _watch(self) -> None:
        try:
            while not self._end.is_set():
                self._talk()
        except (OSError, AssertionError) as error:
            self._error = error

    def _talk(self) -> None:
        began_s = time.monotonic()
        with socket.create_connection(self._address, timeout=20) as peer:
            self._look(peer, b"220", began_s)
            for _ in range(PROBES_PER_CONNECTION):
                if self._end.wait(PROBE_PAUSE_S):
                    return
                began_s = time.monotonic()
                peer.sendall(b"NOOP\r\n")
                self._look(peer, b"250", began_s)

    def _look(self, peer: socket.socket, code: bytes, began_s: float) -> None:
        answer = peer.recv(1000)
        assert answer.startswith(code), f"somebody else was answered {answer!r}"
        self.stall_s = max(self.stall_s, time.monotonic() - began_s)
        self.probes += 1


def measured(row: Row, count: int, folder: Path) -> Found:
    """Return what *row* costs with *count* of whatever it counts; *folder* is for certificates."""
    options = ["--settings", json.dumps(row.settings), *(["--passwords"] if row.passwords else [])]
    if row.spill:
        options += ["--spill", str(folder)]
    if row.tls:
        pair = Authority(folder).issue("resources")
        options += ["--tls", str(pair.certificate), str(pair.key), "--beside"]
    with listener("plain", *options) as server:
        _idle(server.address, WARM_UP, row, 0)
        _settled(server.process)
        before = Peak(server.process)
        before.look()
        descriptors = server.process.num_fds()
        peak, onlooker = Peak(server.process), Onlooker(server.beside or server.address)
        with peak.watching(), onlooker.watching():
            words = _idle(server.address, count, row, IDLE_S) if row.load == "idle" else _loaded(server.address, count, row)
        left_open = _let_go(server.process, descriptors)
        grown = peak.own_octets - before.own_octets
        return Found(row, count, words, grown, onlooker.stall_s, onlooker.probes, left_open)


def _loaded(address: str, count: int, row: Row) -> str:
    with child("tests.server.loads", row.load, address, str(count)) as clients:
        return line_of(clients)


def _idle(address: str, count: int, row: Row, hold_s: float) -> str:
    with child("tests.bench.idlers", address, str(count), *(["tls"] if row.tls else [])) as clients:
        words = line_of(clients)
        threading.Event().wait(hold_s)
        return words


def _settled(process: psutil.Process) -> None:
    """Return once the clients of the warm-up are gone."""
    wait_until(lambda: process.num_fds() < WARM_UP // 2, "the warm-up's connections are let go")


def _let_go(process: psutil.Process, descriptors: int) -> int:
    """Return how many descriptors more there are than before, once that is none or some seconds are over."""
    deadline = time.monotonic() + 10
    left: int = process.num_fds() - descriptors
    while left > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
        left = process.num_fds() - descriptors
    return max(0, left)


def table(found: Mapping[str, Found]) -> str:
    """Return *found* as a table in Markdown."""
    lines = ["| Load | Memory | Longest wait of another client |", "|---|---|---|"]
    for cost in found.values():
        each = f" ({cost.grown_octets / cost.count / KIB:.1f} KiB each)" if cost.row.each_max_octets else ""
        lines.append(
            f"| {cost.count:,} {cost.row.title} | {max(0.0, cost.grown_octets / MIB):.1f} MiB{each} | {cost.stall_s * 1000:.0f} ms |"
        )
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Measure the rows called *names*, or all; return 1 when one is not as it must be."""
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="postbus-resources-") as folder:
        for name in names or ROWS:
            found[name] = measured(ROWS[name], ROWS[name].count, Path(folder))
            print(f"{name}: {found[name].wrong or 'as it must be'}", file=sys.stderr, flush=True)
    print(table(found))
    return 1 if any(cost.wrong for cost in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
