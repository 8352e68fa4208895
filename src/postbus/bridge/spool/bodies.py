"""The bodies that are files: made durable, read, checked and unlinked in a pool of threads, never on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import file_digest
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from postbus.bridge.spool.faults import SpoolDamaged, SpoolFailed
from postbus.bridge.spool.folder import Folder
from postbus.bridge.spool.records import Body, Held

FILE_THREADS = 8
"""fsync of files in parallel: 7 to 25 % more than one after another."""

NAME_OCTETS = 16

Result = TypeVar("Result")


class BodyFiles:
    """The files under ``bodies/``. Make it on the loop that uses it.

    Names are random, so that none is used twice whatever the clock says after a restart: a rename replaces without a word.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="postbus-files")

    def run(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run *job* on a thread of the pool."""
        return self._loop.run_in_executor(self._pool, job)

    def stop(self) -> None:
        """Finish what was asked, and end the threads."""
        self._pool.shutdown()

    async def keep(self, body: Body) -> str:
        """Make *body* durable as a file of its own and return its name. A caller that is cancelled leaves no file.

        Raises:
            SpoolFull, SpoolFailed: there is no such file then.
        """
        name = token_hex(NAME_OCTETS)
        source = body.path
        if source is None and body.octets is None:
            raise ValueError("the body's file was taken before")
        job = partial(self._folder.write, body.octets or b"", name) if source is None else partial(self._folder.keep, source, name)
        future = self.run(job)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda _: self.remove((name,)))
            raise
        finally:
            if source is not None and not future.cancelled() and future.done() and future.exception() is None:
                body.release()
        return name

    def remove(self, names: Sequence[str]) -> None:
        """Unlink bodies, some time soon."""
        if names:
            with suppress(RuntimeError):  # the pool has ended: orphans are swept at the next start
                self._pool.submit(self._folder.remove, tuple(names))

    async def verify(self, held: Held) -> None:
        """Check that the file of *held* is what was accepted.

        Raises:
            SpoolDamaged: it is missing, or is not. SpoolFailed: the disk says no.
        """
        await self.run(partial(_verify, held))

    async def read(self, held: Held) -> bytes:
        """Return the octets of *held*, wherever they are. Raises as ``verify``, but the content is not checked."""
        return held.octets if held.octets is not None else await self.run(partial(_read, held))


@contextmanager
def _body_faults(held: Held) -> Iterator[Path]:
    assert held.path is not None
    try:
        yield held.path
    except FileNotFoundError as error:
        raise SpoolDamaged(f"the body's file is missing: {held.path}") from error
    except OSError as error:
        raise SpoolFailed(f"cannot read a message's file: {error}") from error


def _verify(held: Held) -> None:
    with _body_faults(held) as path, path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if digest != held.mail.sha256:
        raise SpoolDamaged(f"the body's file is not what was accepted: {held.path}")


def _read(held: Held) -> bytes:
    with _body_faults(held) as path:
        return path.read_bytes()
