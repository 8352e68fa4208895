"""A parser process: ``python -m postbus.bridge.parsing_worker memory_max_octets cpu_max_s``. Started by ``bridge.parsing`` alone.

Jobs come on standard input, answers go to standard output, one at a time; end of input ends the process. It holds no
secrets, opens no sockets and dies of whatever kills it: its owner knows what to make of that.

Frames, all lengths big-endian::

    job     4 octets length, JSON {"path": text | null, "size": octets, "inline": octets, "plain": bool}, then *size* octets unless a
            path is given
    answer  1 octet: P parsed, M file missing, S suspect though plain mail alone was asked for; 8 octets length; for P what
            ``parsed.to_bytes`` makes
"""

from __future__ import annotations

import math
import resource
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import orjson

from postbus.event import mime, parsed
from postbus.event.parsed import Defect, Parsed

PARSED = b"P"
MISSING = b"M"
SUSPECT = b"S"


def job(path: str | None, octets: bytes, inline_max_octets: int, *, plain: bool = False) -> bytes:
    """Return the frame that asks for a message to be parsed, the file at *path* or *octets*; *plain*: unless the guard suspects it."""
    text = orjson.dumps({"path": path, "size": len(octets), "inline": inline_max_octets, "plain": plain})
    return len(text).to_bytes(4, "big") + text + octets


def answer(kind: bytes, octets: bytes) -> bytes:
    """Return an answer's frame."""
    return kind + len(octets).to_bytes(8, "big") + octets


def serve(jobs: BinaryIO, answers: BinaryIO, cpu_max_s: int) -> None:
    """Answer *jobs* until they end."""
    while head := jobs.read(4):
        asked = orjson.loads(jobs.read(int.from_bytes(head, "big")))
        octets = jobs.read(asked["size"])
        _allow_cpu(cpu_max_s)
        try:
            if asked["path"] is not None:
                octets = Path(asked["path"]).read_bytes()
            found = _parse(octets, asked["inline"], plain=asked["plain"])
            frame = answer(SUSPECT, b"") if found is None else answer(PARSED, parsed.to_bytes(found))
            del found
        except FileNotFoundError:
            frame = answer(MISSING, b"")
        except MemoryError:
            frame = answer(PARSED, parsed.to_bytes(parsed.unreadable(Defect("parser.memory", None, "memory limit"))))
        del octets
        answers.write(frame)
        answers.flush()


def _parse(octets: bytes, inline_max_octets: int, *, plain: bool) -> Parsed | None:
    verdict = mime.guard(octets)
    if plain and verdict.way == "suspect":
        return None
    if verdict.way == "raw":
        return parsed.unreadable(*verdict.defects)
    return mime.parse(octets, inline_max_octets=inline_max_octets)


def _allow_cpu(cpu_max_s: int) -> None:
    """Let the process use *cpu_max_s* more from now on; past it the kernel ends it (SIGXCPU). The kernel counts in whole seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + cpu_max_s
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def main(memory_max_octets: int, cpu_max_s: int) -> None:
    """Bound this process and serve. Signals for all of postbus are not for us: no mail may be blamed for them, and its drain needs us."""
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_max_octets, memory_max_octets))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer, cpu_max_s)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
