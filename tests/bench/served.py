"""The library's listener as a program: accepts mail and drops it. ``python -m tests.bench.served HANDLER [--spill F] [--tls CERT KEY]``.

Prints the address it is bound to, then serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from postbus.app.loop import loop_factory, raise_file_limit
from postbus.server import Listener, ListenerSettings
from postbus.server.settings import LimitSettings, TlsSettings

CONNECTIONS_MAX = 12_000


class Plain:
    """A hook that is a plain function."""

    def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Drop it."""
        return "250 OK"


class Coroutine:
    """A hook that is a coroutine."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Drop it."""
        return "250 OK"


HANDLERS = {"plain": Plain, "coroutine": Coroutine}


async def serve(handler: object, settings: ListenerSettings, spill_folder: Path | None) -> None:
    """Listen until the process ends."""
    listener = Listener(handler, settings, name="bench", spill_folder=spill_folder)
    await listener.start()
    print(listener.addresses[0], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("handler", choices=HANDLERS)
    parser.add_argument("--spill", type=Path)
    parser.add_argument("--tls", type=Path, nargs=2)
    chosen = parser.parse_args()
    raise_file_limit()
    tls = TlsSettings(mode="implicit", certificate=chosen.tls[0], key=chosen.tls[1]) if chosen.tls else TlsSettings(mode="none")
    settings = ListenerSettings(address="127.0.0.1:0", tls=tls, limits=LimitSettings(connections_max=CONNECTIONS_MAX))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(HANDLERS[chosen.handler](), settings, chosen.spill))


if __name__ == "__main__":
    main()
