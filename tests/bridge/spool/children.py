"""Runs ``committer`` in a process of its own, and reads what a spool holds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from postbus.bridge.spool import Delivery, Spool
from postbus.bridge.spool_settings import SpoolSettings

PROGRAM = Path(__file__).with_name("committer.py")
ROOT = Path(__file__).parents[3]


@contextmanager
def committing(*arguments: object, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program, behind the command *before*; kill it in the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *sys.path])}
    command = [*before, sys.executable, str(PROGRAM), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Yield the words of each whole line the program writes."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith(b"\n"):
            yield line.decode().split()


async def held_by(folder: Path) -> dict[str, str]:
    """Open the spool, return event id -> SHA-256 of the octets of all it holds, and mark all of it done."""
    spool = Spool(SpoolSettings(folder=folder, free_min_octets=0, ballast_octets=0))
    await spool.open()
    found: dict[str, str] = {}
    after, complete = 0, False
    while not complete:
        page = await spool.fresh("out", after, 500, 1 << 30)
        after, complete = page.upto, page.complete
        for delivery in page.deliveries:
            found[delivery.recipient.event_id] = await _digest(spool, delivery)
            spool.done(delivery)
    await spool.flush()
    damaged, left = spool.numbers.damaged, spool.numbers.messages
    await spool.close()
    assert (0, 0) == (damaged, left)
    return found


async def _digest(spool: Spool, delivery: Delivery) -> str:
    digest = hashlib.sha256(await spool.read(delivery.held)).hexdigest()
    assert delivery.held.mail.sha256 == digest
    return digest
