"""What a person who starts postbus at a terminal is told: what listens where, what leads where, what to do next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from postbus import __version__
from postbus.config import Settings
from postbus.config.redact import bare_url
from postbus.server.settings import ListenerSettings
from postbus.sinks.settings import FileSettings, KafkaSettings, PluginSettings, WebhookSettings


def next_step(settings: Settings, addresses: Mapping[str, Sequence[str]], http: str = "") -> str:
    """Return the command that sends a mail into the first listener that can be reached so, as one line; ``""`` without one.

    Args:
        settings: in force.
        addresses: what each listener is bound to.
        http: where the sidecar listens, which ``postbus send`` asks what became of the mail; named unless it is where that looks anyway.
    """
    program = Path(sys.argv[0])
    command = shlex.quote(str(program)) if program.name == "postbus" else "postbus"
    ask = "" if http in {"", "127.0.0.1:8080"} else f" --http http://{_reachable(http)}"
    for name, listener in settings.listeners.items():
        for address in addresses.get(name, ()):
            options = _options(listener, address)
            if options is not None:
                return f"{command} send you@example.org{options}{ask}"
    return ""


def _options(listener: ListenerSettings, address: str) -> str | None:
    """Return the options of ``postbus send`` that lead to *listener*, bound to *address*; ``None`` if it cannot get there."""
    if address.startswith("/"):
        return f" --socket {shlex.quote(address)}" if listener.protocol == "lmtp" and listener.tls.mode == "none" else None
    host, _, port = _reachable(address).rpartition(":")
    where = "" if (host, port) == ("127.0.0.1", "2525") else f" --host {host.strip('[]')} --port {port}"
    login = " --user NAME" if listener.auth.required else ""
    mode = "require" if login and listener.tls.mode == "starttls" else listener.tls.mode  # passwords are asked for inside TLS
    encryption = {"require": " --starttls --insecure", "implicit": " --tls --insecure"}.get(mode, "")
    if listener.protocol == "lmtp":
        return f"{where} --lmtp{login}" if not encryption else None
    return where + encryption + login


def _reachable(address: str) -> str:
    """Return *address* with loopback in place of all interfaces."""
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + f":{port}"  # noqa: S104 - compared, not bound


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
    rows += [("sink", f"{name}: {place(sink)}") for name, sink in settings.sinks.items()]
    rows += [("http", f"http://{_reachable(http)}/  (try /readyz?verbose, /statusz, /metrics, /config)")] if http else []
    rows += [("spool", str(spool.absolute()))] if spool else []
    command = next_step(settings, addresses, http)
    rows += [("next", f"{command}    in a second terminal; Ctrl-C ends this one")] if command else []
    width = max(len(head) for head, _ in rows)
    return "\n".join([f"postbus {__version__} takes mail.", *(f"  {head:<{width}}  {text}" for head, text in rows), ""])


def farewell(sessions: int, deadline_s: float) -> str:
    """Return what somebody at the terminal is told when postbus begins to drain; ``""`` when there is nothing to wait for."""
    if not sessions:
        return ""
    waits = f"{sessions} session" + ("s" if sessions > 1 else "")
    return f"postbus drains: {waits} may finish, for {deadline_s:g} s at most. Ctrl-C again ends at once; what is in the spool stays.\n"


def place(sink: KafkaSettings | WebhookSettings | FileSettings | PluginSettings) -> str:
    """Return where the events of a sink are seen, fit for an open page."""
    match sink:
        case FileSettings(path="-"):
            return "JSON lines on standard output"
        case FileSettings():
            return f"JSON lines in {sink.path}"
        case KafkaSettings():
            return "records of topic " + ", ".join(dict.fromkeys([sink.topic, *sink.topics.values()]))
        case WebhookSettings():
            return f"POST to {bare_url(sink.url)}"
        case _:
            return f"a sink of kind {sink.kind}"
