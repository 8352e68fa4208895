"""A process that commits mail as fast as it can, for tests that kill it, starve it or look over its shoulder.

``python committer.py FOLDER PREFIX COMMITTERS MAILS FILES_EVERY [FREE_MIN]``. Each line on standard output is one ``write``:
``try <event>``, then ``ack <event> <sha256>``, or ``full <event>`` / ``failed <event>``; ``open`` once the spool is, ``end`` at the end.
After ``full`` or ``failed`` the mail is tried again until it is taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from itertools import count
from pathlib import Path

from postbus.bridge.spool import Spool, SpoolFailed, SpoolFull, slots_of
from postbus.bridge.spool_settings import SpoolSettings
from tests.bridge.mails import Octets, in_memory, mail, spilled


def say(text: str) -> None:
    """Write one line in one system call."""
    os.write(1, f"{text}\n".encode())


def body(spool: Spool, name: str, number: int, files_every: int) -> tuple[bytes, Octets]:
    """Return the content of mail *number* and its body: now and then a file."""
    dice = random.Random(name)
    if files_every and number % files_every == 0:
        content = dice.randbytes(300_000)
        return content, spilled(spool.spill_folder, content, f"spill-{name}")
    content = dice.randbytes(dice.choice((0, 100, 1_000, 20_000)))
    return content, in_memory(content)


async def commit(spool: Spool, name: str, number: int, files_every: int) -> None:
    """Commit one mail, however often it takes."""
    event = f"{name}-0"
    say(f"try {event}")
    while True:
        content, octets = body(spool, name, number, files_every)
        record = mail(name, content)
        try:
            await spool.commit(record, slots_of(record), octets)
        except SpoolFull:
            say(f"full {event}")
        except SpoolFailed:
            say(f"failed {event}")
        else:
            say(f"ack {event} {hashlib.sha256(content).hexdigest()}")
            return
        while spool.gate() is not None:
            await asyncio.sleep(0.01)


async def main(folder: str, prefix: str, committers: str, mails: str, files_every: str, free_min: str = "0") -> None:
    """Commit *mails* mails by *committers* tasks."""
    spool = Spool(SpoolSettings(folder=Path(folder), free_min_octets=int(free_min), ballast_octets=4_194_304))
    await spool.open()
    say("open")
    numbers = iter(range(int(mails))) if int(mails) else count()

    async def work() -> None:
        for number in numbers:
            await commit(spool, f"{prefix}{number}", number, int(files_every))

    await asyncio.gather(*(work() for _ in range(int(committers))))
    await spool.close()
    say("end")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
