"""The library's listener as a program: accepts mail and drops it.

``python -m tests.bench.served HANDLER [--spill F] [--tls CERT KEY] [--settings JSON] [--passwords] [--beside]``.

Prints the address it is bound to (with ``--beside`` that of a second listener, without TLS, too), then serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from postbus.app.loop import loop_factory, raise_file_limit
from postbus.server import Listener, ListenerSettings
from postbus.server.auth import AuthResult

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


def refuse(*_: Any) -> AuthResult:
    """Know nobody."""
    return AuthResult(success=False, handled=False)


async def serve(handler: object, settings: ListenerSettings, spill_folder: Path | None, *, passwords: bool, beside: bool) -> None:
    """Listen until the process ends; with *passwords* AUTH is offered, and nobody succeeds; *beside*: a plain one too."""
    listener = Listener(handler, settings, name="bench", spill_folder=spill_folder, authenticator=refuse if passwords else None)
    await listener.start()
    addresses = list(listener.addresses)
    if beside:
        plain = Listener(handler, ListenerSettings(address="127.0.0.1:0"), name="beside")
        await plain.start()
        addresses += plain.addresses
    print(*addresses, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("handler", choices=HANDLERS)
    parser.add_argument("--spill", type=Path)
    parser.add_argument("--tls", type=Path, nargs=2)
    parser.add_argument("--settings", type=json.loads, default={}, help="more of the listener's settings")
    parser.add_argument("--passwords", action="store_true")
    parser.add_argument("--beside", action="store_true", help="a second listener, without TLS")
    chosen = parser.parse_args()
    raise_file_limit()
    tls = {"mode": "implicit", "certificate": chosen.tls[0], "key": chosen.tls[1]} if chosen.tls else {"mode": "none"}
    limits = {"connections_max": CONNECTIONS_MAX, **chosen.settings.pop("limits", {})}
    settings = ListenerSettings.model_validate({"address": "127.0.0.1:0", "tls": tls, "limits": limits, **chosen.settings})
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(HANDLERS[chosen.handler](), settings, chosen.spill, passwords=chosen.passwords, beside=chosen.beside))


if __name__ == "__main__":
    main()
