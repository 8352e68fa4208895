"""Every log line, metric and span, as one function per fact, taking primitives.

The sole owner of opentelemetry and logging. A fact bumps plain numbers (``_count``, ``_observe``, ``_put``) that observable
instruments read when scraped, and writes at most one line (``_log``). A count costs 0.2 us, a line 3 us, an unsampled span 0.2 us.

- ``metrics``: the table of metrics; a new metric is a new row.   ``numbers``: the cells that facts bump.
- ``mail``: the facts of every message, compiled in the image.
- ``lines``: the log.   ``spans``: traces, off unless an OTLP endpoint is configured.
- ``exposition`` (imports OpenTelemetry, so import it only where /metrics is served) renders the numbers for Prometheus.

House words: mail addresses only through ``address()``; no message content, ever; label values from our configuration or from our
own closed sets, never from a peer.
"""

from __future__ import annotations

import logging
from traceback import format_exception

from postbus.telemetry.lines import LOG
from postbus.telemetry.mail import delivery_attempted, delivery_done, mail_parsed, message_answered
from postbus.telemetry.numbers import NUMBERS
from postbus.telemetry.spans import TRACING, Trace

__all__ = [
    "Trace",
    "address",
    "configure",
    "delivery_attempted",
    "delivery_done",
    "flush",
    "mail_parsed",
    "message_answered",
    "say",
    "trace_start",
    "watch",
]

_count = NUMBERS.count
_observe = NUMBERS.observe
_put = NUMBERS.put
_log = LOG.log

watch = NUMBERS.watch
"""``watch(gauge, read)``: *read* is asked at each scrape for {label values: number}; returns a function that ends it."""
address = LOG.address
"""A mail address as ``log_addresses`` allows it in a log line."""
say = LOG.say
"""``say(text)``: words for the person at a terminal; nothing where the log is for machines."""
configure = LOG.configure
"""Start logging: ``configure(level=, log_format=, addresses=)``."""
flush = LOG.close
"""Write what waits and stop logging to standard error; waits at most a second for a slow reader."""
trace_start = TRACING.trace_start
"""``trace_start(name, kind=, parent=traceparent, **attributes)``: a ``Trace`` if sampled, else ``None``."""

# --- sidecar


def http_started(*, address: str) -> None:
    """The sidecar listens."""
    _log("info", "sidecar.started", address=address)


def http_stopped() -> None:
    """The sidecar closed its sockets, last of all."""
    _log("info", "sidecar.stopped")


def http_answered(*, code: int) -> None:
    """The sidecar answered a request."""
    _count("postbus_http_requests_total", str(code))


def http_evicted(*, reason: str) -> None:
    """A sidecar connection was closed: ``slow`` (no whole request, or no reading of the answer, in time) or ``crowded``."""
    _count("postbus_http_evictions_total", reason)


def http_failed(*, path: str, error: str, traceback: str) -> None:
    """A sidecar endpoint raised, which is a mistake of ours; the client saw a fixed text."""
    _log("error", "sidecar.failed", path=path, error=error, traceback=traceback)


def admin_acted(*, action: str, outcome: str, peer: str) -> None:
    """Somebody asked for a change of state: *outcome* is ``done``, ``refused`` (no or wrong token), ``off`` or ``failed``."""
    _count("postbus_admin_actions_total", action, outcome)
    _log("info" if outcome == "done" else "warning", "admin.acted", action=action, outcome=outcome, peer=peer)


def loop_lagged(*, lag_s: float) -> None:
    """The event loop ran its heartbeat *lag_s* late; a line only from half a second on."""
    _put("postbus_loop_lag_seconds", lag_s)
    if lag_s >= 0.5:
        _log("warning", "loop.lagged", lag_s=round(lag_s, 3))


def task_restarted(*, task: str, error: str, after_s: float, traceback: str | None = None) -> None:
    """A supervised task died and is started again after a pause."""
    _count("postbus_task_restarts_total", task)
    _log("error", "task.restarted", task=task, error=error, after_s=after_s, traceback=traceback)


# --- app


def app_started(*, version: str, seconds: float, try_with: str) -> None:
    """Everything listens; mail is taken from now on. *try_with* is a command that sends a mail."""
    _put("postbus_info", 1.0, version)
    _log("info", "app.started", version=version, seconds=round(seconds, 3), try_with=try_with)


def listener_bound(*, listener: str, address: str, protocol: str, tls: str) -> None:
    """A listener takes connections at *address*."""
    _log("info", "listener.bound", listener=listener, address=address, protocol=protocol, tls=tls)


def certificate_expires(*, listener: str, expires_s: float) -> None:
    """The certificate now in use on a listener ends at the Unix time *expires_s*."""
    _put("postbus_tls_certificate_expiry_seconds", expires_s, listener)


def route_told(*, route: str, match: str, acceptance: str, mode: str, sinks: str) -> None:
    """A route as configured, at start and after a reload: what leads where."""
    _log("info", "route.told", route=route, match=match, acceptance=acceptance, mode=mode, sinks=sinks)


def app_draining(*, why: str, deadline_s: float) -> None:
    """Nothing new is taken; what is under way ends."""
    _put("postbus_draining", 1.0)
    _log("info", "app.draining", why=why, deadline_s=deadline_s)


def app_stopped(*, seconds: float, in_time: bool, left_in_spool: int) -> None:
    """The drain has ended, *in_time* or cut at its deadline; *left_in_spool* messages are delivered after the next start."""
    _log("info" if in_time else "warning", "app.stopped", seconds=round(seconds, 3), in_time=in_time, left_in_spool=left_in_spool)


def end_failed(*, what: str, why: str, traceback: str | None) -> None:
    """A part of the process did not end as it should; it was left behind, and the end goes on."""
    _log("error", "end.failed", what=what, why=why, traceback=traceback)


def reloaded(*, changed: str, needs_restart: str) -> None:
    """A new configuration is in force, but for what *needs_restart*."""
    _count("postbus_reloads_total", "done")
    _log("warning" if needs_restart else "info", "config.reloaded", changed=changed, needs_restart=needs_restart)


def reload_refused(*, problem: str) -> None:
    """A new configuration is wrong; the old one stays in force. One line for each problem."""
    _log("error", "config.refused", problem=problem)


def reload_failed() -> None:
    """Count a reload that changed nothing because the configuration is wrong."""
    _count("postbus_reloads_total", "refused")


def config_warned(*, warning: str) -> None:
    """The configuration works, but somebody should look at it."""
    _log("warning", "config.warning", warning=warning)


# --- intake


def recipient_refused(*, session: str, recipient: str, route: str, code: int) -> None:
    """A recipient was not taken: *code* 550 without a route, 4xx for a fault of ours, 552 for a size."""
    _count("postbus_recipients_total", route, "refused")
    _log("info", "recipient.refused", session=session, recipient=address(recipient), route=route, code=code)


# --- sinks


def sink_connected(*, sink: str, missing_topics: str | None = None) -> None:
    """A sink's client is ready; *missing_topics* are those of its topics that the cluster does not know."""
    _log("info" if missing_topics is None else "error", "sink.connected", sink=sink, missing_topics=missing_topics)


def sink_troubled(*, sink: str, why: str, error: str, traceback: str | None = None) -> None:
    """A sink that worked, or was starting, does not: once per cause, not per event."""
    _log("error", "sink.troubled", sink=sink, why=why, error=error, traceback=traceback)


def sink_restarted(*, sink: str, why: str) -> None:
    """A sink's client was thrown away and is made anew."""
    _count("postbus_sink_restarts_total", sink)
    _log("warning", "sink.restarted", sink=sink, why=why)


def sink_single_copy(*, sink: str, topic: str, replication_factor: int | None, min_insync_replicas: int | None) -> None:
    """An acknowledgement of *topic* may rest on the page cache of one broker: its 250 would not survive that machine."""
    _log(
        "warning",
        "sink.single_copy",
        sink=sink,
        topic=topic,
        replication_factor=replication_factor,
        min_insync_replicas=min_insync_replicas,
    )


def sink_limit_learnt(*, sink: str, octets: int) -> None:
    """A sink takes less than it was said to: events and messages above *octets* are held back from now on."""
    _log("warning", "sink.limit_learnt", sink=sink, octets=octets)


def sink_abandoned(*, sink: str, events: int) -> None:
    """A sink was closed with *events* still on their way; they are retried after the next start."""
    _log("warning", "sink.abandoned", sink=sink, events=events)


def sink_endpoint_gone(*, sink: str) -> None:
    """A webhook's receiver answered 410: it wants no more events; they wait until an operator decides."""
    _log("error", "sink.endpoint_gone", sink=sink)


def sink_file_repaired(*, sink: str, octets: int) -> None:
    """The last line of a file was incomplete, after a crash or on a full disk; its *octets* were taken off."""
    _log("warning", "sink.file_repaired", sink=sink, octets=octets)


def library_quieted(*, logger: str) -> None:
    """Keep a library's own log off: what it says at ERROR reaches us as an exception, what it says at DEBUG holds message content."""
    logging.getLogger(logger).setLevel(logging.CRITICAL)


# --- spool and dispatcher


def spool_opened(*, messages: int, octets: int, dead_letters: int) -> None:
    """The spool is ours, with what it held."""
    _log("info", "spool.opened", messages=messages, octets=octets, dead_letters=dead_letters)


def spool_swept(*, orphans: int) -> None:
    """Files that no row names were removed at start: receptions that a crash ended before their 250."""
    if orphans:
        _log("info", "spool.swept", orphans=orphans)


def spool_committed(*, messages: int, seconds: float) -> None:
    """One group is durable."""
    _count("postbus_spool_commits_total", "done")
    _observe("postbus_spool_commit_seconds", seconds)
    if seconds > 1:
        _log("warning", "spool.slow", messages=messages, seconds=round(seconds, 3))


def spool_failed(*, kind: str, why: str) -> None:
    """The disk said no: ``full``, ``failed`` (I/O error at commit), ``reopen``, ``housekeeping``."""
    _count("postbus_spool_commits_total", kind)
    _log("error", "spool.failed", kind=kind, why=why)


def spool_reopened(*, failures: int) -> None:
    """The spool takes mail again after an I/O error."""
    _log("info", "spool.reopened", failures=failures)


def spool_damaged(*, what: str, why: str, place: str) -> None:
    """Something on disk is not what was written; it was set aside: ``database``, ``row`` or ``message``."""
    _log("error", "spool.damaged", what=what, why=why, place=place)


def spool_withdrawn(*, message: str) -> None:
    """A message became durable after its sender had been told 451; it is taken out, since it will be sent again."""
    _log("warning", "spool.withdrawn", message=message)


def spool_job_crashed(*, error: BaseException) -> None:
    """A job of the spool's thread raised what it should not: a mistake of ours."""
    _log("error", "spool.job_crashed", error=repr(error), traceback=_traceback(error))


def dead_letter_dropped(*, sink: str, event: str) -> None:
    """A dead letter grew too old."""
    _count("postbus_dead_letters_dropped_total", sink)
    _log("warning", "dead_letter.dropped", sink=sink, event_id=event)


def _traceback(error: BaseException) -> str:
    return "".join(format_exception(error))


# --- parsing


def parser_ended(*, reason: str, detail: str) -> None:
    """A parser process ended: ``worn`` (it did its share), ``timeout``, ``died``, ``abandoned``; or there was none: ``unavailable``."""
    _count("postbus_parsers_ended_total", reason)
    _log("info" if reason == "worn" else "warning", "parser.ended", reason=reason, detail=detail)


def delivery_deferred(*, sink: str, event: str, attempt: int, why: str) -> None:
    """An event failed by itself and steps aside."""
    _log("warning", "delivery.deferred", sink=sink, event_id=event, attempt=attempt, why=why)


def delivery_given_up(*, sink: str, event: str, reason: str, why: str, kept: bool) -> None:
    """An event will not be tried again: ``rejected``, ``attempts``, ``age``, ``crowded``; *kept* as a dead letter, or best effort."""
    _count("postbus_dead_letters_total" if kept else "postbus_best_effort_dropped_total", sink, reason)
    _log("error" if kept else "warning", "delivery.dead" if kept else "delivery.dropped", sink=sink, event_id=event, reason=reason, why=why)


def sink_paused(*, sink: str, why: str, pause_s: float, failures: int) -> None:
    """A sink is down: its queue pauses."""
    _log("warning", "sink.paused", sink=sink, why=why, pause_s=round(pause_s, 3), failures=failures)


def sink_resumed(*, sink: str, failures: int) -> None:
    """A sink answers again."""
    _log("info", "sink.resumed", sink=sink, failures=failures)


# --- server


def connection_refused(*, listener: str, reason: str, code: int, peer: str) -> None:
    """A connection was turned away before the banner.

    *reason* is ``draining``, ``crowded``, ``client_connections``, ``client_rate``, ``memory``, ``disk``, ``spool`` or ``gate``.
    """
    _count("postbus_sessions_refused_total", listener, reason)
    _log("info", "session.refused", listener=listener, reason=reason, code=code, peer=peer)


def load_shed(*, reason: str, begins: bool, detail: str) -> None:
    """Connections are refused from now on for want of *reason* (``memory``, ``disk``), or not any more."""
    _put("postbus_load_shedding", float(begins), reason)
    _log("warning" if begins else "info", "load.shed" if begins else "load.eased", reason=reason, detail=detail)


def limit_hit(*, listener: str, limit: str) -> None:
    """A peer ran into a limit within its session; *limit* is a word of ``postbus.server.limits``."""
    _count("postbus_limits_hit_total", listener, limit)


def accept_failed(*, listener: str, error: str) -> None:
    """A connection could not be accepted: most likely no file is left."""
    _count("postbus_sessions_refused_total", listener, "accept")
    _log("error", "accept.failed", listener=listener, error=error)


def session_closed(
    *,
    listener: str,
    session: str,
    peer: str,
    helo: str | None,
    tls: str | None,
    auth: str | None = None,
    accepted: int,
    refused: int,
    recipients: int,
    octets: int,
    duration_s: float,
    outcome: str,
    limit: str | None = None,
) -> None:
    """The summary of a session: *outcome* is quit, eof, lost, refused, timeout, limit, drain, tls, proxy (its handler's no) or failed.

    *limit* is the last it ran into.

    *auth* is the mechanism by which the peer authenticated, *accepted* and *refused* count messages, *recipients* those of accepted
    messages, *octets* all that was received.
    """
    _count("postbus_sessions_total", listener, outcome)
    _count("postbus_received_octets_total", listener, by=octets)
    _observe("postbus_session_seconds", duration_s, listener)
    _log(
        "info",
        "session.closed",
        listener=listener,
        session=session,
        peer=peer,
        helo=helo,
        tls=tls,
        auth=auth,
        accepted=accepted,
        refused=refused,
        recipients=recipients,
        octets=octets,
        duration_s=round(duration_s, 3),
        outcome=outcome,
        limit=limit,
    )


def auth_ended(*, listener: str, mechanism: str, outcome: str) -> None:
    """An AUTH exchange is over: ``success``, ``failure`` (its credentials are not good), ``fault`` (ours) or ``cancelled``."""
    _count("postbus_authentications_total", listener, mechanism, outcome)


def auth_told(*, listener: str, session: str, peer: str, mechanism: str, outcome: str, identity: str | None) -> None:
    """Who has authenticated; of a failure only from where: what was given for a name may be a password."""
    _log(
        "info" if outcome == "success" else "warning",
        "auth.told",
        listener=listener,
        session=session,
        peer=peer,
        mechanism=mechanism,
        outcome=outcome,
        identity=None if identity is None else address(identity),
    )


def users_loaded(*, listener: str, users: int) -> None:
    """A listener's user file was read."""
    _log("info", "users.loaded", listener=listener, users=users)


def session_failed(*, listener: str, error: str, traceback: str) -> None:
    """A mistake of ours ended a session; its peer will come again."""
    _log("error", "session.failed", listener=listener, error=error, traceback=traceback)


def command_rejected(*, listener: str, code: int) -> None:
    """A command or a message was answered 4xx or 5xx."""
    _count("postbus_commands_rejected_total", listener, str(code))


def defect_tolerated(*, listener: str, kind: str, count: int) -> None:
    """A command or a message was taken though it is not as it should be, *count* times in the same way; the event says so too."""
    _count("postbus_defects_total", listener, kind, by=count)


def tls_started(*, listener: str, version: str) -> None:
    """A handshake succeeded."""
    _count("postbus_tls_handshakes_total", listener, version)


def proxy_refused(*, listener: str, peer: str, reason: str, error: str) -> None:
    """A connection to a listener behind a proxy got no session: untrusted, malformed, timeout, lost, drain, or its handler's no.

    *error* says what is wrong with a malformed header. A health check that only connects is ``lost``, which is no warning.
    """
    _count("postbus_proxy_refused_total", listener, reason)
    _log(
        "debug" if reason in {"lost", "drain"} else "warning",
        "proxy.refused",
        listener=listener,
        peer=peer,
        reason=reason,
        error=error or None,
    )


def tls_failed(*, listener: str, peer: str, error: str) -> None:
    """A handshake failed, or its peer left."""
    _count("postbus_tls_handshakes_total", listener, "failed")
    _log("info", "tls.failed", listener=listener, peer=peer, error=error)


def tls_reloaded(*, listener: str, outcome: str, error: str | None) -> None:
    """Certificate and key were read again: *outcome* is ``done``, or ``failed`` and the old ones stay."""
    _count("postbus_tls_reloads_total", listener, outcome)
    _log("info" if error is None else "error", "tls.reloaded", listener=listener, outcome=outcome, error=error)


def hook_failed(*, hook: str, session: str, error: str, traceback: str) -> None:
    """A handler's hook raised; its peer got 451."""
    _count("postbus_handler_errors_total", hook)
    _log("error", "handler.failed", hook=hook, session=session, error=error, traceback=traceback)


def hook_misanswered(*, hook: str, session: str, error: str) -> None:
    """A handler's hook returned something that is no answer; its peer got 451."""
    _count("postbus_handler_errors_total", hook)
    _log("error", "handler.misanswered", hook=hook, session=session, error=error)


def answer_late(*, listener: str, session: str, hook: str) -> None:
    """A hook did not answer in time, so its peer got 451; the hook goes on."""
    _log("warning", "answer.late", listener=listener, session=session, hook=hook)


def reply_lost(*, listener: str, session: str, reply: str) -> None:
    """A message has its answer, but nobody is there to hear it: the sender will send it again."""
    _count("postbus_replies_lost_total", listener)
    _log("warning", "reply.lost", listener=listener, session=session, reply=reply)


def spill_failed(*, listener: str, session: str, error: str) -> None:
    """Content could not be written to disk; its sender got 451 or 452."""
    _log("error", "spill.failed", listener=listener, session=session, error=error)


def listener_drained(*, listener: str, sessions: int, in_time: bool) -> None:
    """All *sessions* that were open have ended, *in_time* or cut."""
    _log("info" if in_time else "warning", "listener.drained", listener=listener, sessions=sessions, in_time=in_time)
