"""Where mail is parsed: small plain mail here and at once, everything else in processes that may die of it.

A message that ends its parser, or takes too much CPU time or memory, is published raw with a defect that says so; it is never
parsed in this process. Only what the message itself does counts, so that the verdict is the same each time: what comes from outside (no
process to be had, one killed, a clock on the wall) says nothing of the message, which has to come again. These are fresh interpreters
talking over pipes, not forks: a fork of a process with threads and a warm heap is neither safe nor small.

Small plain mail waits for nobody. Large mail is first asked for as plain: a parser process that suspects it (many parts, messages
inside messages) says so at once, and it queues with its like, which never have all the processes: costly mail waits for costly mail.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from postbus import telemetry
from postbus.bridge import parsing_worker
from postbus.bridge.parsing_here import parse_here, told
from postbus.bridge.parsing_settings import ParsingSettings
from postbus.bridge.renderer import ParserUnavailableError
from postbus.event import mime, parsed
from postbus.event.parsed import Defect, Parsed

_MODULE = "postbus.bridge.parsing_worker"
_HEAD_OCTETS = 9
_APART = mime.Verdict("worker")
_SUSPECT = parsed.unreadable()
"""A parser process finds that a message may take long; known by being this very object."""
_ANSWER_SLACK_OCTETS = 64 * 1024 * 1024
"""An answer holds the contents asked for and texts that are bounded; one far beyond comes from a process that has lost its mind."""

_LAST_MOMENT_S = 1.0
_ATTEMPTS_MAX = 2
"""A parser killed from outside (out of memory, an operator) says nothing about its mail: another one tries, once."""

_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
"""Deaths that say nothing of a mail; those by the last three are had only before the process has begun to ignore them."""
_EXPECTED_DEATHS = {-signal.SIGXCPU: Defect("parser.timeout", None, "CPU time")}


class Parser:
    """Parses mail. Make one per process of ours; ``start`` costs nothing, parser processes start when first needed."""

    def __init__(self, settings: ParsingSettings | None = None) -> None:
        self._settings = settings or ParsingSettings()
        self._free = asyncio.Semaphore(self._settings.workers)
        self._free_for_suspects = asyncio.Semaphore(max(1, self._settings.workers - 1))
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._stopped = False

    async def start(self) -> None:
        """Be ready."""

    async def parse(self, octets: bytes | Path, *, inline_max_octets: int = mime.INLINE_MAX_OCTETS) -> Parsed:
        """Return a message taken apart, or the verdict that it is to be published raw (``readable`` false). Takes bounded time.

        Args:
            octets: the message, or the file that holds it (which is then never read here).
            inline_max_octets: how much of attachments' contents to keep, as base64; see ``mime.parse``. The largest event
                any recipient's sinks carry is the natural choice.

        Raises:
            FileNotFoundError: the file is gone.
            ParserUnavailableError: no process to be had, or the machine too busy, or somebody killed it: the message is not to blame.
        """
        small = octets if isinstance(octets, bytes) and len(octets) <= mime.SIMPLE_MAX_OCTETS else None
        found = None if small is None else self.parse_here(small, inline_max_octets=inline_max_octets)
        if found is not None:
            return found
        started = perf_counter()
        verdict = _APART if small is None else mime.guard(small)
        if verdict.way == "raw":
            return told("none", parsed.unreadable(*verdict.defects), started)
        return told("worker", await self._parse_apart(octets, inline_max_octets, suspect=verdict.way == "suspect"), started)

    parse_here = staticmethod(parse_here)

    async def _parse_apart(self, body: bytes | Path, inline_max_octets: int, *, suspect: bool) -> Parsed:
        if not suspect:  # as far as we know: this process does not read large mail
            found = await self._parse_in_turn(body, inline_max_octets, plain=True)
            if found is not _SUSPECT:
                return found
        async with self._free_for_suspects:
            return await self._parse_in_turn(body, inline_max_octets, plain=False)

    async def _parse_in_turn(self, body: bytes | Path, inline_max_octets: int, *, plain: bool) -> Parsed:
        async with self._free:
            for _ in range(_ATTEMPTS_MAX):
                if self._stopped:
                    raise ParserUnavailableError("parsing has stopped")
                try:
                    worker = self._idle.pop() if self._idle else await self._spawn()
                except OSError as exc:
                    telemetry.parser_ended(reason="unavailable", detail=repr(exc))
                    raise ParserUnavailableError("no process to parse in could be had") from exc
                found = await self._ask(worker, body, inline_max_octets, plain=plain)
                if found is not None:
                    return found
            raise ParserUnavailableError("parser processes are being killed from outside")

    async def _spawn(self) -> _Worker:
        settings = self._settings
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-s", "-m", _MODULE, str(settings.memory_max_octets), str(settings.cpu_max_s)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            # Nothing of our environment, which may hold secrets, but the way to our own code.
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            limit=1024 * 1024,
        )
        worker = _Worker(process)
        self._workers.add(worker)
        return worker

    async def _ask(self, worker: _Worker, body: bytes | Path, inline_max_octets: int, *, plain: bool) -> Parsed | None:
        """Return *worker*'s answer, or what its ending means; ``None`` when it was killed by nobody we know: then another may try."""
        limit = inline_max_octets + _ANSWER_SLACK_OCTETS
        try:
            async with asyncio.timeout(self._settings.wall_max_s):
                found = await worker.ask(body, inline_max_octets, limit, plain=plain)
        except TimeoutError:
            await self._bury(worker, "timeout")
            raise ParserUnavailableError("parsing did not end in time") from None
        except _EndedError:
            code = await self._bury(worker, "died")
            if -code in _FROM_OUTSIDE:
                return None
            return parsed.unreadable(_EXPECTED_DEATHS.get(code, Defect("parser.died", None, _named(code))))
        except BaseException:
            # Cancelled, or the file is gone: the conversation may be half done, and a process costs little.
            await self._bury(worker, "abandoned")
            raise
        if worker.jobs < self._settings.jobs_max:
            self._idle.append(worker)
        else:
            await self._bury(worker, "worn")
        return found

    async def _bury(self, worker: _Worker, reason: str) -> int:
        """End *worker* and return its exit code as it was, should it have ended by itself."""
        self._workers.discard(worker)
        code = await worker.end()
        telemetry.parser_ended(reason=reason, detail=_named(code))
        return code

    async def stop(self) -> None:
        """End all parser processes; jobs still running get ParserUnavailableError."""
        self._stopped = True
        self._idle.clear()
        while self._workers:
            await self._workers.pop().end()


class _EndedError(Exception):
    """The parser process ended, or said what no parser says."""


class _Worker:
    """One parser process and the conversation with it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.jobs = 0

    async def ask(self, body: bytes | Path, inline_max_octets: int, answer_max_octets: int, *, plain: bool) -> Parsed:
        """Send one job and return its answer. *plain*: it may be _SUSPECT. Raises FileNotFoundError, _EndedError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.jobs += 1
        path, octets = (None, body) if isinstance(body, bytes) else (str(body), b"")
        frame = parsing_worker.job(path, octets, inline_max_octets, plain=plain)
        try:
            self.process.stdin.write(frame)
            await self.process.stdin.drain()
            head = await self.process.stdout.readexactly(_HEAD_OCTETS)
            size_octets = int.from_bytes(head[1:], "big")
            if size_octets > answer_max_octets:
                raise _EndedError("answer too large")
            octets = await self.process.stdout.readexactly(size_octets)
            if head[:1] == parsing_worker.PARSED:
                return parsed.from_bytes(octets)
            if plain and head[:1] == parsing_worker.SUSPECT:
                return _SUSPECT
        except (OSError, asyncio.IncompleteReadError, ValueError) as exc:
            raise _EndedError(str(exc)) from exc
        raise FileNotFoundError(str(body))

    async def end(self) -> int:
        """Kill the process if it still runs, wait for it, and return its exit code."""
        assert self.process.stdin is not None
        # A process that ended by itself closes its pipes a moment before it can be waited for; that moment tells how it died.
        if self.process.returncode is None and self.process.stdout is not None and self.process.stdout.at_eof():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_MOMENT_S):
                    await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
        self.process.stdin.close()
        return await self.process.wait()


def _named(code: int) -> str:
    """Return an exit code in words: the signal's name, or the number."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
