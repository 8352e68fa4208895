"""What a person who starts postbus at a terminal is told: what listens where, what leads where, what to do next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from postbus import __version__
from postbus.config import Settings


def next_step(settings: Settings, addresses: Mapping[str, Sequence[str]]) -> str:
    """Return the command that sends a mail into the first SMTP listener on a port, as one line; ``""`` without one."""
    program = Path(sys.argv[0])
    command = shlex.quote(str(program)) if program.name == "postbus" else "postbus"
    for name, listener in settings.listeners.items():
        for address in addresses.get(name, ()):
            host, _, port = address.rpartition(":")
            if host:
                where = "" if (host, port) == ("127.0.0.1", "2525") else f" --host {host.strip('[]')} --port {port}"
                return f"{command} send you@example.org{where}" + (" --lmtp" if listener.protocol == "lmtp" else "")
    return ""


def welcome(
    settings: Settings,
    addresses: Mapping[str, Sequence[str]],
    http: str,
    routes: Sequence[tuple[str, str, str, str, str]],
    spool: Path | None,
) -> str:
    """Return the text: a few aligned lines."""
    rows = [
        (f"{listener.protocol} in", f"{address}  ({name}, TLS {listener.tls.mode})")
        for name, listener in settings.listeners.items()
        for address in addresses.get(name, ())
    ]
    rows += [("route", f"{match}  ->  {sinks}  ({name}: {mode}, {acceptance})") for name, match, acceptance, mode, sinks in routes]
    rows += [("http", f"http://{http}/  (try /readyz?verbose, /statusz, /metrics, /config)")] if http else []
    rows += [("spool", str(spool))] if spool else []
    command = next_step(settings, addresses)
    rows += [("next", f"{command}    in a second terminal")] if command else []
    rows += [("look", look) for look in sorted({_where(sink.model_dump()) for sink in settings.sinks.values()})]
    width = max(len(head) for head, _ in rows)
    return "\n".join([f"postbus {__version__} takes mail.", *(f"  {head:<{width}}  {text}" for head, text in rows), ""])


def _where(sink: Mapping[str, object]) -> str:
    """Return where the events of a sink are seen."""
    match sink["kind"]:
        case "file" if str(sink["path"]) == "-":
            return "each event is a line of JSON on standard output; the log is on standard error"
        case "file":
            return f"each event is a line of JSON in {sink['path']}"
        case "kafka":
            return f"events are records of the topic {sink['topic']}"
        case kind:
            return f"events go to {kind} sinks"
