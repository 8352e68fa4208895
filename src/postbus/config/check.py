"""What no single setting can know: whether names are defined, addresses free of each other, files readable, certificates in time.

One function per part of the tree, each yielding findings; nothing here touches the network. An error keeps postbus from
starting, a warning is for ``postbus check`` and the log.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

from postbus.bridge.patterns import Pattern, PatternError, compile_pattern
from postbus.bridge.routing import Router
from postbus.bridge.settings import RouteSettings
from postbus.config import certificates
from postbus.config.finding import ConfigurationError, Finding, Path, quoted
from postbus.config.idle import idle
from postbus.config.load import Loaded
from postbus.config.tree import Settings
from postbus.config.wording import nearest
from postbus.server import users
from postbus.server.networks import UNIX
from postbus.server.settings import ListenerSettings, address_of
from postbus.sinks import registry
from postbus.sinks.settings import (
    ClientTls,
    FileSettings,
    KafkaSettings,
    PluginSettings,
    Secret,
    SecretMissingError,
    SinkSettings,
    WebhookSettings,
    signing_key,
    variable_shown,
)

EXPIRY_WARNING_S = 14 * 86_400
"""cert-manager renews 30 days before the end by default: with 14 left, renewal has failed for a while."""

_PROBE_OCTETS = 1 << 30

Trouble = tuple[Path, str, str]
"""Where, what is wrong, what would be right."""


def check(known: Loaded | ConfigurationError, now_s: float | None = None) -> list[Finding]:
    """Return the findings about *known*: those loading ended with, or those that need the whole tree; warnings if there is no error.

    Args:
        known: what ``load`` returned or raised.
        now_s: seconds since the Unix epoch, for certificates; the clock's unless given.
    """
    if isinstance(known, ConfigurationError):
        return list(known.findings)
    settings, now_s = known.settings, time.time() if now_s is None else now_s
    errors: Sequence[Callable[[Settings], Iterable[Trouble]]] = (
        _route_names, _route_sinks, _route_patterns, _hold_routes, _required_for_ready, _addresses, _listener_tls, _listener_auth,
        _proxies, _sink_files, _one_writer, _plugins, _folders,
    )  # fmt: skip
    warnings: Sequence[Callable[[Settings], Iterable[Trouble]]] = (
        _never_reached, _postmaster, _unused_sinks, _weak_auth, _room, _times, _limits, _unannounced, _loose_proxies,
        idle, partial(_expiring, now_s=now_s),
    )  # fmt: skip
    found = [known.origins.finding("error", *trouble) for look in errors for trouble in look(settings)]
    if not found:
        found = [known.origins.finding("warning", *trouble) for look in warnings for trouble in look(settings)]
    return sorted(found, key=lambda finding: finding.line or 0)


def _route_names(settings: Settings) -> Iterator[Trouble]:
    first: dict[str, int] = {}
    for index, route in enumerate(settings.routes):
        if route.name in first:
            yield ("routes", index, "name"), f"routes[{first[route.name]}] has the name {quoted(route.name)} too", "give each its own"
        first.setdefault(route.name, index)


def _route_sinks(settings: Settings) -> Iterator[Trouble]:
    for index, route in enumerate(settings.routes):
        for field, names in (("sinks", route.sinks), ("best_effort", route.best_effort)):
            for position, name in enumerate(names):
                path: Path = ("routes", index, field, position)
                if name not in settings.sinks:
                    yield path, f"there is no sink {quoted(name)}", _which(name, settings)
                elif name in names[:position]:
                    yield path, f"the sink {quoted(name)} is named twice", "name it once"
                elif field == "best_effort" and name in route.sinks:
                    yield path, f"the sink {quoted(name)} is required already", "name it in `sinks` or in `best_effort`"


def _required_for_ready(settings: Settings) -> Iterator[Trouble]:
    for position, name in enumerate(settings.require_sink):
        if name not in settings.sinks:
            yield ("require_sink", position), f"there is no sink {quoted(name)}", _which(name, settings)


def _which(name: str, settings: Settings) -> str:
    near = nearest(name, list(settings.sinks))
    return f"did you mean {near}?" if near else f"define it under `sinks`, or use {', '.join(settings.sinks)}"


def _patterns(settings: Settings) -> Iterator[tuple[Path, RouteSettings, Pattern | PatternError]]:
    for index, route in enumerate(settings.routes):
        for position, text in enumerate(route.match):
            path: Path = ("routes", index, "match", position)
            try:
                yield path, route, compile_pattern(text, tags=route.tags)
            except PatternError as error:
                yield path, route, error


def _route_patterns(settings: Settings) -> Iterator[Trouble]:
    for path, _, pattern in _patterns(settings):
        if isinstance(pattern, PatternError):
            yield path, pattern.message, pattern.remedy


def _never_reached(settings: Settings) -> Iterator[Trouble]:
    everyone: Path | None = None
    seen: dict[tuple[str, str, bool], str] = {}
    for path, route, pattern in _patterns(settings):
        if isinstance(pattern, PatternError):
            continue
        if everyone is not None:
            yield path, f"no recipient gets here: {quoted('*')} in routes[{everyone[1]}] takes everyone", "put this route before it"
            return
        identity = (pattern.kind, pattern.key or pattern.text, pattern.untagged)
        if identity in seen and pattern.kind in {"exact", "domain"}:
            yield path, f"no recipient gets here: the route {quoted(seen[identity])} has the same pattern", "remove one of them"
        seen.setdefault(identity, route.name)
        everyone = path if pattern.kind == "everyone" else None


def durable(sink: SinkSettings) -> bool:
    """Say whether an event this sink has acknowledged survives the loss of our process."""
    if isinstance(sink, PluginSettings):
        try:
            return registry.make("", sink).durable
        except registry.SinkUnusableError:
            return True  # said of the sink itself
    return not isinstance(sink, FileSettings) or (sink.path != "-" and sink.fsync)


def _hold_routes(settings: Settings) -> Iterator[Trouble]:
    for index, route in enumerate(settings.routes):
        sinks = [settings.sinks[name] for name in route.sinks if name in settings.sinks]
        if (route.acceptance or settings.acceptance) == "hold" and sinks and not any(map(durable, sinks)):
            said = f"the route {quoted(route.name)} holds mail for sinks that keep nothing: {', '.join(route.sinks)}"
            yield ("routes", index, "sinks"), said, "require a Kafka, webhook or fsynced file sink, or set acceptance to spool"


def _one_writer(settings: Settings) -> Iterator[Trouble]:
    """Yield the file sinks that would write between each other's lines."""
    writers: dict[str, str] = {}
    for name, sink in settings.sinks.items():
        if isinstance(sink, FileSettings):
            place = sink.path if sink.path == "-" else os.path.realpath(sink.path)
            if place in writers:
                yield (
                    ("sinks", name, "path"),
                    f"the sink {quoted(writers[place])} writes there too",
                    "give each its own, or use one for both",
                )
            writers.setdefault(place, name)


@dataclass(frozen=True, slots=True)
class _AnySink:
    event_max_octets: int = _PROBE_OCTETS
    octets: bool = True


def _postmaster(settings: Settings) -> Iterator[Trouble]:
    patterns = [pattern for _, _, pattern in _patterns(settings)]
    names = {name for route in settings.routes for name in route.sinks}
    if any(isinstance(pattern, PatternError) for pattern in patterns):
        return
    router = Router(settings.routes, dict.fromkeys(names, _AnySink()))
    domains = dict.fromkeys(
        pattern.key.rpartition("@")[2] for pattern in patterns if isinstance(pattern, Pattern) and pattern.key not in {"", "postmaster"}
    )
    missing = [address for address in ("postmaster", *(f"postmaster@{domain}" for domain in domains)) if router.match(address) is None]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        remedy = "mail to postmaster must be taken (RFC 5321 s4.5.1): add a route with match: [postmaster, postmaster@*]"
        yield ("routes",), f"no route takes {shown}", remedy


def _unused_sinks(settings: Settings) -> Iterator[Trouble]:
    used = {name for route in settings.routes for name in (*route.sinks, *route.best_effort)}
    for name in settings.sinks:
        if name not in used:
            yield ("sinks", name), "no route leads here", "name it in a route's `sinks` or `best_effort`, or remove it"


def _addresses(settings: Settings) -> Iterator[Trouble]:
    taken: list[tuple[tuple[str, int] | FilePath, str]] = []
    places: list[tuple[Path, str]] = [(("listeners", name, "address"), listener.address) for name, listener in settings.listeners.items()]
    if settings.sidecar.enabled:
        places.append((("sidecar", "address"), settings.sidecar.address))
    for path, text in places:
        address = address_of(text)
        other = next((holder for held, holder in taken if _collide(held, address)), None)
        if other is not None:
            yield path, f"{text} is taken by {other}", "give each its own port" if isinstance(address, tuple) else "give each its own path"
        taken.append((address, ".".join(map(str, path[:-1]))))


def _collide(one: tuple[str, int] | FilePath, other: tuple[str, int] | FilePath) -> bool:
    """Say whether two servers cannot both listen there. Port 0 is any free port; all interfaces are each of them."""
    if isinstance(one, FilePath) or isinstance(other, FilePath):
        return one == other
    same_host = one[0] == other[0] or bool({one[0], other[0]} & {"", "0.0.0.0", "::"})  # noqa: S104 - compared, not bound
    return one[1] == other[1] != 0 and same_host


def _tls_listeners(settings: Settings) -> Iterator[tuple[str, ListenerSettings, certificates.Verdict]]:
    for name, listener in settings.listeners.items():
        if listener.tls.mode != "none" and listener.tls.certificate is not None:
            yield name, listener, certificates.look(listener.tls.certificate, listener.tls.key)


def _listener_tls(settings: Settings) -> Iterator[Trouble]:
    for name, listener, verdict in _tls_listeners(settings):
        if verdict.trouble:
            yield ("listeners", name, "tls", verdict.at), verdict.trouble, verdict.remedy
        untrusted = certificates.trouble_trusting(listener.tls.client_ca) if listener.tls.client_ca else None
        if untrusted:
            yield ("listeners", name, "tls", "client_ca"), *untrusted


def _listener_auth(settings: Settings) -> Iterator[Trouble]:
    """Yield what keeps anybody from logging in, or a user file from being read."""
    for name, listener in settings.listeners.items():
        auth, place = listener.auth, ("listeners", name, "auth")
        if "EXTERNAL" in auth.mechanisms and listener.tls.client_ca is None:
            remedy = f"set listeners.{name}.tls.client_ca to the authorities that sign clients' certificates, or leave EXTERNAL out"
            yield (*place, "mechanisms"), "EXTERNAL needs certificates of clients, which nobody is asked for", remedy
        offered = auth.offered(certificates=listener.tls.client_ca is not None)
        if auth.required and not offered:
            yield (
                (*place, "required"),
                "nobody can log in: there is no user file",
                "name one in auth.users; make it: postbus passwd FILE NAME",
            )
        elif auth.required and listener.tls.mode == "none" and not auth.allow_plaintext:
            yield (*place, "required"), "nobody can log in: AUTH is for TLS only, and the listener has none", "give it a certificate (tls)"
        if auth.users is not None:
            try:
                users.read(auth.users)
            except users.UsersUnusable as error:
                yield (*place, "users"), str(error), error.remedy


def _weak_auth(settings: Settings) -> Iterator[Trouble]:
    for name, listener in settings.listeners.items():
        auth, place = listener.auth, ("listeners", name, "auth")
        offered = auth.offered(certificates=listener.tls.client_ca is not None)
        if offered and auth.allow_plaintext:
            yield (*place, "allow_plaintext"), "passwords can be read on the way", "give the listener TLS, and remove allow_plaintext"
        elif offered and listener.tls.mode == "none":
            yield (*place, "users"), "AUTH is never offered: it is for TLS only, and the listener has none", "give it a certificate (tls)"
        if auth.users is not None and not users.read(auth.users):
            rest = ", so nobody can log in, and all mail is refused" if auth.required else ""
            yield (*place, "users"), f"{auth.users} holds no user{rest}", f"add one: postbus passwd {auth.users} NAME"


def _proxies(settings: Settings) -> Iterator[Trouble]:
    for name, listener in settings.listeners.items():
        if listener.proxy.header and not listener.proxy.trusted:
            said = "nobody may connect: each connection needs a PROXY header, and nobody is trusted to send one"
            yield ("listeners", name, "proxy", "trusted"), said, "name the networks of the load balancer, as in [10.0.0.0/8]"
        elif listener.proxy.header:
            bound_to_path = isinstance(address_of(listener.address), FilePath)
            if bound_to_path and UNIX not in listener.proxy.trusted:
                said = "nobody may connect: whoever connects over a Unix socket has no address"
                yield ("listeners", name, "proxy", "trusted"), said, f"name {UNIX}"
            elif not bound_to_path and set(listener.proxy.trusted) == {UNIX}:
                said = f"nobody may connect: {UNIX} is whoever connects over a Unix socket, and this is a port"
                yield ("listeners", name, "proxy", "trusted"), said, "name the networks of the load balancer, as in [10.0.0.0/8]"


def _loose_proxies(settings: Settings) -> Iterator[Trouble]:
    for name, listener in settings.listeners.items():
        proxy = listener.proxy
        if proxy.trusted and not proxy.header:
            said = "no PROXY header is asked for, so nobody needs trust here"
            yield ("listeners", name, "proxy", "trusted"), said, "set proxy.header to true, or remove this"
        for field in ("trusted", "xclient", "xforward"):
            for position, entry in enumerate(getattr(proxy, field)):
                if entry.endswith("/0"):
                    said = f"{entry} trusts everybody with the client's address"
                    yield ("listeners", name, "proxy", field, position), said, "name the networks of the proxies alone"


def _expiring(settings: Settings, now_s: float) -> Iterator[Trouble]:
    for name, _, verdict in _tls_listeners(settings):
        left_s = verdict.expires_s - now_s if verdict.expires_s is not None else None
        if left_s is not None and left_s < EXPIRY_WARNING_S:
            days = max(int(left_s // 86_400), 0)
            yield ("listeners", name, "tls", "certificate"), f"the certificate ends in {days} days", "renew it"


def _sink_files(settings: Settings) -> Iterator[Trouble]:
    for name, sink in settings.sinks.items():
        match sink:
            case KafkaSettings(tls=tls, sasl=sasl):
                yield from _topic_routes(name, sink, [route.name for route in settings.routes])
                yield from _client_tls(("sinks", name, "tls"), tls)
                yield from _secret(("sinks", name, "sasl", "password"), sasl.password if sasl else None)
            case WebhookSettings():
                yield from _client_tls(("sinks", name, "tls"), sink.tls)
                yield from _secret(("sinks", name, "authorization"), sink.authorization)
                for index, secret in enumerate(sink.signing_secrets):
                    yield from _secret(("sinks", name, "signing_secrets", index), secret, _signing_trouble)
            case FileSettings():
                if sink.path != "-":
                    yield from _folder(("sinks", name, "path"), FilePath(sink.path).parent)
    if settings.sidecar.token_file is not None:
        unreadable = certificates.trouble_reading(settings.sidecar.token_file)
        if unreadable:
            yield ("sidecar", "token_file"), *unreadable
    elif settings.sidecar.token_env is not None and not os.environ.get(settings.sidecar.token_env):
        said = f"the environment variable {variable_shown(settings.sidecar.token_env)} is not set"
        yield ("sidecar", "token_env"), said, "set it, or use token_file"


def _plugins(settings: Settings) -> Iterator[Trouble]:
    """Make, and forget, each sink that another package brings: it alone knows what is right."""
    for name, sink in settings.sinks.items():
        if not isinstance(sink, PluginSettings):
            continue
        kinds = registry.kinds()
        if sink.kind not in kinds:
            near = nearest(sink.kind, kinds)
            remedy = f"did you mean {near}?" if near else f"install the package that brings it, or use one of {', '.join(kinds)}"
            yield ("sinks", name, "kind"), f"no sink of kind {quoted(sink.kind)} is installed", remedy
            continue
        try:
            registry.make(name, sink)
        except registry.SinkUnusableError as error:
            yield ("sinks", name), str(error), ""


def _topic_routes(name: str, sink: KafkaSettings, routes: list[str]) -> Iterator[Trouble]:
    for route in sink.topics:
        if route not in routes:
            near = nearest(route, routes)
            yield ("sinks", name, "topics", route), f"there is no route {quoted(route)}", f"did you mean {near}?" if near else "remove it"


def _client_tls(path: Path, tls: ClientTls | None) -> Iterator[Trouble]:
    untrusted = certificates.trouble_trusting(tls.ca) if tls and tls.ca else None
    if untrusted:
        yield (*path, "ca"), *untrusted
    unfit = certificates.trouble_showing(tls.certificate, tls.key) if tls and tls.certificate else None
    if unfit:
        yield (*path, unfit.at), unfit.trouble, unfit.remedy


def _secret(path: Path, secret: Secret | None, judge: Callable[[str], tuple[str, str] | None] | None = None) -> Iterator[Trouble]:
    if secret is None:
        return
    unreadable = certificates.trouble_reading(secret.file) if secret.file else None
    if unreadable:
        yield path, *unreadable
        return
    try:
        text = secret.read()
    except SecretMissingError as error:
        yield path, str(error), "set the variable" if secret.env else "put it into the file"
        return
    trouble = judge(text) if judge else None
    if trouble:
        yield path, *trouble


def _signing_trouble(text: str) -> tuple[str, str] | None:
    remedy = "write whsec_ and base64 of 24 to 64 random octets: echo whsec_$(head -c 32 /dev/urandom | base64)"
    try:
        signing_key(text)
    except ValueError as error:
        return str(error), remedy
    return None


def _folders(settings: Settings) -> Iterator[Trouble]:
    yield from _folder(("spool", "folder"), settings.spool.folder, made=True)
    for name, listener in settings.listeners.items():
        address = address_of(listener.address)
        if isinstance(address, FilePath):
            yield from _folder(("listeners", name, "address"), address.parent)


def _folder(path: Path, folder: FilePath, *, made: bool = False) -> Iterator[Trouble]:
    """Yield what keeps us from writing in *folder*, which we make if it is missing where *made* says so."""
    nearest_one = folder
    while made and not nearest_one.exists() and nearest_one != nearest_one.parent:
        nearest_one = nearest_one.parent
    if not nearest_one.exists():
        yield path, f"the folder {folder} does not exist", "make it, or mount a volume there"
    elif not nearest_one.is_dir():
        yield path, f"{nearest_one} is not a folder", "name a folder"
    elif not os.access(nearest_one, os.W_OK | os.X_OK):
        yield (
            path,
            f"the folder {nearest_one.absolute()} cannot be written by user {os.getuid()}",
            "change its owner, or fsGroup on Kubernetes",
        )


def _room(settings: Settings) -> Iterator[Trouble]:
    for name, listener in settings.listeners.items():
        most = listener.limits.message_max_octets or 0
        if most > settings.spool.max_octets and any((route.acceptance or settings.acceptance) == "spool" for route in settings.routes):
            said = f"a message of {most} octets, which listener {quoted(name)} takes, never fits"
            yield ("spool", "max_octets"), said, "raise it, or lower the listener's limits.message_max_octets"


def _unannounced(settings: Settings) -> Iterator[Trouble]:
    for name, listener in settings.listeners.items():
        for field, keyword in (("deliverby_min_s", "DELIVERBY"), ("priority_profile", "MT-PRIORITY")):
            if getattr(listener.parameters, field) and keyword not in listener.announce:
                remedy = f"add {keyword} to the listener's announce, or remove this"
                yield ("listeners", name, "parameters", field), f"{keyword}, which it belongs to, is not announced", remedy


def _limits(settings: Settings) -> Iterator[Trouble]:
    """Yield limits that somebody has set, but that are never met because another one comes first."""
    for name, listener in settings.listeners.items():
        limits, place = listener.limits, ("listeners", name)
        if "connections_max" in listener.clients.model_fields_set and listener.clients.connections_max > limits.connections_max:
            said = f"{listener.clients.connections_max} is above limits.connections_max, {limits.connections_max}: one client can take all"
            yield (*place, "clients", "connections_max"), said, "lower it"
        for slow, most in (("errors_slow", "errors_max"), ("junk_slow", "junk_max")):
            if slow in limits.model_fields_set and getattr(limits, slow) >= getattr(limits, most):
                said = f"{getattr(limits, slow)} is not below {most}, {getattr(limits, most)}: no answer gets slower"
                yield (*place, "limits", slow), said, "lower it"


def _times(settings: Settings) -> Iterator[Trouble]:
    holds = any((route.acceptance or settings.acceptance) == "hold" for route in settings.routes)
    for name, listener in settings.listeners.items():
        answer_s, drain_s = listener.timeouts.answer_timeout_s, settings.drain_timeout_s
        if answer_s >= drain_s:
            path: Path = ("listeners", name, "timeouts", "answer_timeout_s")
            yield path, f"{answer_s:g} s is not below drain_timeout_s, {drain_s:g} s", "lower it: a drain would cut answers off"
        if holds and settings.hold.timeout_s >= answer_s:
            said = f"{settings.hold.timeout_s:g} s is not below the answer_timeout_s of listener {quoted(name)}, {answer_s:g} s"
            yield ("hold", "timeout_s"), said, "lower it: the sender would be answered 451 before the sinks are"
