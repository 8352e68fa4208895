"""How the bench measures: loads by smtp-source, CPU of a server's processes, rounds in turn so that drift cancels.

The generator shares the machine's cores with the server, so CPU per message is the first figure and messages per second the second.
Every load is bounded in count, and in time by RUN_TIMEOUT_S.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import peers
from tests.bench.figures import Series
from tests.e2e.harness import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 180
CONNECTIONS = 20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The kernel counts CPU time in these; only the few messages of a smoke run can take less."""
MESSAGES_MIN = 100
POSTFIX = "install postfix: it has smtp-sink and smtp-source"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: of every row; the median counts.
        share: of the usual number of messages.
        folder: for spools, queues and logs: on the disk that is measured.
        say: told what goes on.
        settings: filled with the settings that were on, by row.
    """

    rounds: int
    share: float
    folder: Path
    say: Callable[[str], None]
    settings: dict[str, Any] = field(default_factory=dict)

    def count(self, usual: int) -> int:
        """Return how many to send (or to open) where it is usually *usual*."""
        return max(min(usual, MESSAGES_MIN), int(usual * self.share))


@dataclass(frozen=True, slots=True)
class Load:
    """What smtp-source sends. *reuse*: a connection carries many messages, instead of one each."""

    messages: int
    size_octets: int = 1024
    reuse: bool = True
    connections: int = CONNECTIONS


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its process (children count with it), its SMTP address, and how to wait until it has nothing left to do.

    *beside* is the address of its second listener, where it was asked to have one.
    """

    process: psutil.Process
    address: str
    drained: Callable[[], object] = lambda: None
    beside: str = ""

    @property
    def cpu_s(self) -> float:
        """User and system time of the process and its children so far, those that have ended included."""
        own = self.process.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        return float(total)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: CPU microseconds of the server per message; messages per second until all were accepted, until all were done with."""

    cpu_us: float
    accepted_s: float
    done_s: float


def send(address: str, load: Load) -> None:
    """Send *load* to *address* with smtp-source; return in the moment it ends."""
    source = peers.need("smtp-source", POSTFIX)
    options = ["-s", str(load.connections), "-m", str(load.messages), "-l", str(load.size_octets), *(["-d"] if load.reuse else [])]
    command = [source, *options, "-f", "a@example.org", "-t", "b@example.net", address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watchdog = threading.Timer(RUN_TIMEOUT_S, process.kill)  # waiting with a timeout looks every 50 ms: 4 % of a run
        watchdog.start()
        try:
            code = process.wait()
        finally:
            watchdog.cancel()
    if code:
        raise subprocess.CalledProcessError(code, command)


def measure(server: Server, load: Load) -> Sample:
    """Send *load* to *server* and return what it cost."""
    before_s, began_at = server.cpu_s, time.monotonic()
    send(server.address, load)
    accepted_at = time.monotonic()
    server.drained()
    done_at = time.monotonic()
    cpu_us = max(TICK_S, server.cpu_s - before_s) * 1e6 / load.messages
    return Sample(cpu_us, load.messages / (accepted_at - began_at), load.messages / (done_at - began_at))


def in_turn(plan: Plan, runs: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Measure A B A B ...: *plan*'s rounds of every run, each beside the others, so that what drifts drifts for all."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for number in range(1, plan.rounds + 1):
        for name, run in runs.items():
            plan.say(f"round {number} of {plan.rounds}: {name}")
            samples[name].append(run())
    return samples


def duel(plan: Plan, ours: Server, theirs: Server, load: Load) -> tuple[list[Sample], list[Sample]]:
    """Measure two servers under the same *load*, in turn, after a warm-up of each."""
    for server in (ours, theirs):
        send(server.address, Load(min(load.messages, 500), load.size_octets))
        server.drained()
    samples = in_turn(plan, {"postbus": lambda: measure(ours, load), "peer": lambda: measure(theirs, load)})
    return samples["postbus"], samples["peer"]


def cpu(samples: list[Sample]) -> Series:
    """Return the CPU per message."""
    return Series("us", tuple(sample.cpu_us for sample in samples))


def rate(samples: list[Sample]) -> Series:
    """Return the messages per second, from the first connection until nothing is left to do."""
    return Series("/s", tuple(sample.done_s for sample in samples))


# --- servers


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``python -m ...`` with pipes in and out, and end it."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line *process* prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended with {process.wait()}"
    return line.strip()


@contextmanager
def listener(*arguments: str) -> Iterator[Server]:
    """Run the library's listener, which drops what it accepts; *arguments* as of ``tests.bench.served``."""
    with child("tests.bench.served", *arguments) as process:
        address, *beside = line_of(process).split()
        yield Server(psutil.Process(process.pid), address, beside="".join(beside))


@contextmanager
def smtp_sink() -> Iterator[Server]:
    """Run Postfix's smtp-sink."""
    program = peers.need("smtp-sink", POSTFIX)
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it insists
    with _program(lambda address: [program, *user, address, "200"]) as server:
        yield server


@contextmanager
def aiosmtpd_sink() -> Iterator[Server]:
    """Run aiosmtpd with the handler that does nothing, as its own command starts it."""
    options = ("-n", "-c", "aiosmtpd.handlers.Sink", "-l")
    with _program(lambda address: [sys.executable, "-m", "aiosmtpd", *options, address]) as server:
        yield server


@contextmanager
def _program(command: Callable[[str], list[str]]) -> Iterator[Server]:
    """Run a server that takes its address as an argument; yield it when it greets."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(command(address), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: greets(address), f"{command(address)[0]} greets at {address}")
        yield Server(psutil.Process(process.pid), address)
    finally:
        process.kill()
        process.wait()


def greets(address: str) -> bool:
    """Return whether an SMTP server says something at *address*."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            return bool(peer.recv(100))
    except OSError:
        return False
