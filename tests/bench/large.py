"""A hundred connections, each sending 25 MiB at the same time: how much resident memory that takes at its highest."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import psutil

from tests.bench.bridge import bridge, defaults
from tests.bench.figures import Series
from tests.bench.measuring import Load, Plan, Server, listener, send

CONNECTIONS = 100
MIB = 1024 * 1024
LOAD = Load(CONNECTIONS, size_octets=25 * MIB, reuse=False, connections=CONNECTIONS)
WARM_UP = (Load(200), Load(1, size_octets=MIB))
ROUNDS_MAX = 3
"""Each takes a fresh process (memory once grown stays) and 2.5 GB on the disk."""
SAMPLE_S = 0.02


class Peak:
    """The most resident memory of a process and its children, looked at every SAMPLE_S while the context lasts."""

    def __init__(self, process: psutil.Process) -> None:
        self.own_octets = self.family_octets = 0
        self._process = process
        self._end = threading.Event()

    def look(self) -> None:
        """Look once."""
        own = self._process.memory_info().rss
        family = own
        for member in self._process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                family += member.memory_info().rss
        self.own_octets, self.family_octets = max(self.own_octets, own), max(self.family_octets, family)

    def _watch(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while not self._end.wait(SAMPLE_S):
                self.look()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from a thread."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


def _grown(server: Server, plan: Plan) -> Peak:
    """Return by how much *server* grows, own and with its children."""
    for load in WARM_UP:
        send(server.address, load)
    server.drained()
    before = Peak(server.process)
    before.look()
    peak = Peak(server.process)
    with peak.watching():
        send(server.address, _load(plan))
        server.drained()
    peak.own_octets -= before.own_octets
    peak.family_octets -= before.family_octets
    return peak


def _load(plan: Plan) -> Load:
    return replace(LOAD, size_octets=max(MIB, int(LOAD.size_octets * min(1.0, plan.share))))


def listener_growth(plan: Plan) -> tuple[Series, None, str]:
    """The library's listener with a folder to spill to; it drops what it accepts."""
    found = []
    for number in range(1, min(plan.rounds, ROUNDS_MAX) + 1):
        plan.say(f"round {number}")
        folder = plan.folder / f"spill{number}"
        folder.mkdir()
        with listener("plain", "--spill", str(folder)) as server:
            found.append(_grown(server, plan).own_octets / MIB)
        shutil.rmtree(folder)
    return Series("MiB", tuple(found)), None, f"{CONNECTIONS} messages of {_load(plan).size_octets} octets a round"


def bridge_growth(plan: Plan) -> tuple[Series, None, str]:
    """The default bridge, with its parser processes, less the budget it is configured to hold in memory."""
    beyond, own = [], []
    budget_octets = 0
    for number in range(1, min(plan.rounds, ROUNDS_MAX) + 1):
        plan.say(f"round {number}")
        with bridge(plan, f"large-bridge-{number}", defaults()) as (postbus, server):
            config = postbus.get("/config", "application/json").json()
            budget_octets = int(config.get("settings", config)["dispatch"]["in_flight_max_octets"])
            peak = _grown(server, plan)
            beyond.append((peak.family_octets - budget_octets) / MIB)
            own.append(peak.own_octets / MIB)
        shutil.rmtree(postbus.folder)
    alone = Series("MiB", tuple(own))
    note = f"parser processes included; budget {budget_octets / MIB:.0f} MiB; the main process alone grew by {alone.median:.0f} MiB"
    return Series("MiB", tuple(beyond)), None, note
