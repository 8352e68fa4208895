"""Accepting mail and dropping it: CPU of the server process per message, against smtp-sink's on the same machine in the same run.

``python -m tests.bench.accept`` prints the table. Each server runs in a process of its own on loopback; ``smtp-source`` (Debian's postfix)
sends. Both share the machine's cores, so messages per second are the second figure. Every run is bounded by RUN_TIMEOUT_S.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass

import psutil

from tests import peers

RUN_TIMEOUT_S = 120
CONNECTIONS = 20
POSTFIX = "Debian's postfix package has it"


@dataclass(frozen=True, slots=True)
class Load:
    """What smtp-source sends.

    Attributes:
        reuse: one connection for many messages, instead of one each.
    """

    name: str
    messages: int
    size_octets: int
    reuse: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement."""

    server: str
    load: str
    cpu_us: float
    spread_us: float
    messages_s: float


LOADS = (
    Load("1 KB, reused", 20_000, 1024, reuse=True),
    Load("1 KB, one connection each", 6_000, 1024, reuse=False),
    Load("64 KB, reused", 6_000, 65_536, reuse=True),
)

SERVER = """
import asyncio, sys
from pathlib import Path
from postbus.server import Listener, ListenerSettings
from postbus.server.settings import LimitSettings

class Plain:
    def handle_DATA(self, server, session, envelope):
        return "250 OK"

class Coroutine:
    async def handle_DATA(self, server, session, envelope):
        return "250 OK"

async def main(handler):
    folder = Path(sys.argv[2]) if sys.argv[2] else None
    listener = Listener(handler, ListenerSettings(address="127.0.0.1:0"), name="bench", spill_folder=folder)
    await listener.start()
    print(listener.addresses[0], flush=True)
    await asyncio.Event().wait()

def run(main):
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)

run(main(globals()[sys.argv[1]]()))
"""


Server = Callable[[], AbstractContextManager[tuple[psutil.Process, str]]]


@contextmanager
def postbus(handler: str, spill_folder: str = "") -> Iterator[tuple[psutil.Process, str]]:
    """Run our listener with the ``Plain`` or ``Coroutine`` handler; yield its process and address."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, handler, spill_folder], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield psutil.Process(process.pid), process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def smtp_sink() -> Iterator[tuple[psutil.Process, str]]:
    """Run Postfix's smtp-sink; yield its process and address."""
    program = peers.need("smtp-sink", POSTFIX)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it insists
    process = subprocess.Popen([program, *user, address, "200"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_banner(address)
        yield psutil.Process(process.pid), address
    finally:
        process.kill()
        process.communicate()


def _await_banner(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=1) as peer:
                peer.recv(100)
                return
        except OSError:
            if time.monotonic() > deadline:
                raise


def measure(server: psutil.Process, address: str, load: Load) -> tuple[float, float]:
    """Send *load* to *address*; return (CPU microseconds of *server* per message, messages per second)."""
    source = peers.need("smtp-source", POSTFIX)
    options = ["-s", str(CONNECTIONS), "-m", str(load.messages), "-l", str(load.size_octets)] + (["-d"] if load.reuse else [])
    before, began_at = server.cpu_times(), time.monotonic()
    subprocess.run([source, *options, "-f", "a@example.org", "-t", "b@example.net", address], check=True, timeout=RUN_TIMEOUT_S)
    seconds, after = time.monotonic() - began_at, server.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return cpu_s * 1e6 / load.messages, load.messages / seconds


def figures(runs: int, share: float = 1.0) -> list[Figure]:
    """Measure every server under every load, *runs* times in turn; *share* scales the number of messages."""
    servers: dict[str, Server] = {
        "smtp-sink": smtp_sink,
        "postbus plain": lambda: postbus("Plain"),
        "postbus coroutine": lambda: postbus("Coroutine"),
    }
    found = []
    for load in (Load(load.name, max(200, int(load.messages * share)), load.size_octets, load.reuse) for load in LOADS):
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for name, start in servers.items():
            with start() as (process, address):
                measure(process, address, Load("warm-up", 200, 1024, reuse=True))
                samples[name] = [measure(process, address, load) for _ in range(runs)]
        for name, sample in samples.items():
            cpu = [one[0] for one in sample]
            found.append(
                Figure(name, load.name, statistics.median(cpu), max(cpu) - min(cpu), statistics.median([one[1] for one in sample]))
            )
    return found


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of messages")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = figures(chosen.runs, chosen.share)
    if chosen.json:
        print(json.dumps([asdict(figure) for figure in found], indent=1))
        return
    sink = {figure.load: figure.cpu_us for figure in found if figure.server == "smtp-sink"}
    for figure in found:
        print(
            f"{figure.load:28}{figure.server:20}{figure.cpu_us:8.0f} us ±{figure.spread_us:4.0f}"
            f"{figure.cpu_us / sink[figure.load]:7.2f} x{figure.messages_s:9.0f}/s"
        )


if __name__ == "__main__":
    main()
