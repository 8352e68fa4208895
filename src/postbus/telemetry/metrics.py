"""The table of every metric: name, kind, help, labels. Documentation, exposition and checks read this one table.

Names are ``postbus_<noun>_<unit>_total`` for counters and ``postbus_<noun>[_<unit>]`` for gauges and histograms. Label values come
from the configuration (listener, sink, route) or from a closed set of words written in our code, never from a peer: that bounds
the number of series. A fact that needs another metric adds a row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for one step of our own work: 1 ms to the answer timeout (30 s)."""
SESSION_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0)
"""Bounds for whole sessions, which last as long as the peer likes (RFC 5321 s4.5.3.2: minutes)."""
OCTETS = (1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0)
"""Bounds for message and event sizes: 1 KiB to 64 MiB."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        name: as exposed; counters end in ``_total``.
        kind: counter, gauge or histogram.
        help: one sentence for the person on call.
        labels: label names, in the order in which facts give their values.
        bounds: upper bounds of a histogram's buckets, ascending, without +Inf; empty for the other kinds.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    # server
    Metric("postbus_sessions_total", "counter", "Sessions that ended, by how they ended.", ("listener", "outcome")),
    Metric("postbus_sessions_refused_total", "counter", "Connections refused before the banner, by reason.", ("listener", "reason")),
    Metric("postbus_proxy_refused_total", "counter", "Connections closed for want of a PROXY header that will do.", ("listener", "reason")),
    Metric(
        "postbus_limits_hit_total", "counter", "Limits that sessions ran into, by limit (docs/open-internet.md).", ("listener", "limit")
    ),
    Metric("postbus_clients_known", "gauge", "Client networks connected, or remembered for their rates.", ("listener",)),
    Metric("postbus_load_shedding", "gauge", "1 while connections are refused for want of memory or disk.", ("reason",)),
    Metric("postbus_sessions_open", "gauge", "Sessions open now.", ("listener",)),
    Metric("postbus_session_seconds", "histogram", "How long sessions lasted.", ("listener",), SESSION_SECONDS),
    Metric("postbus_commands_rejected_total", "counter", "Commands answered 4xx or 5xx, by reply code.", ("listener", "code")),
    Metric("postbus_tls_handshakes_total", "counter", "TLS handshakes, by outcome.", ("listener", "outcome")),
    Metric("postbus_tls_reloads_total", "counter", "Certificates loaded again, by outcome.", ("listener", "outcome")),
    Metric("postbus_tls_certificate_expiry_seconds", "gauge", "When the certificate in use expires, as a Unix time.", ("listener",)),
    Metric("postbus_received_octets_total", "counter", "Message octets received.", ("listener",)),
    Metric("postbus_defects_total", "counter", "Violations tolerated in commands and content, by kind.", ("listener", "kind")),
    Metric(
        "postbus_authentications_total",
        "counter",
        "AUTH exchanges that ended, by mechanism and outcome (success, failure, fault, cancelled).",
        ("listener", "mechanism", "outcome"),
    ),
    Metric("postbus_handler_errors_total", "counter", "Exceptions in a handler's hook, each answered 451.", ("hook",)),
    # bridge
    Metric("postbus_messages_total", "counter", "Messages answered after the last dot, by outcome.", ("listener", "outcome")),
    Metric("postbus_message_octets", "histogram", "Sizes of accepted messages.", ("listener",), OCTETS),
    Metric("postbus_acceptance_seconds", "histogram", "From the last dot to its answer, by acceptance mode.", ("mode",), SECONDS),
    Metric("postbus_recipients_total", "counter", "RCPT commands by outcome; route is empty if none matched.", ("route", "outcome")),
    Metric("postbus_replies_lost_total", "counter", "Messages accepted whose 250 could not be sent.", ("listener",)),
    Metric("postbus_parses_total", "counter", "Messages parsed, by where (process, worker, none) and outcome.", ("place", "outcome")),
    Metric("postbus_parsers_ended_total", "counter", "Parser processes that ended, by reason (worn is the usual one).", ("reason",)),
    Metric("postbus_parse_seconds", "histogram", "Parsing times, by where.", ("place",), SECONDS),
    Metric("postbus_spool_commits_total", "counter", "Group commits of the spool, by outcome.", ("outcome",)),
    Metric("postbus_spool_commit_seconds", "histogram", "Group commits, fsync included.", (), SECONDS),
    Metric("postbus_spool_messages", "gauge", "Messages held in the spool."),
    Metric("postbus_spool_octets", "gauge", "Octets held in the spool."),
    Metric("postbus_spool_free_octets", "gauge", "Free octets on the spool's file system."),
    Metric("postbus_spool_damaged", "gauge", "Messages set aside because they are not what was written."),
    Metric("postbus_spool_oldest_seconds", "gauge", "Age of the oldest message still owed to a sink."),
    Metric("postbus_dead_letters_dropped_total", "counter", "Dead letters dropped for their age or number.", ("sink",)),
    Metric("postbus_dead_letters_kept", "gauge", "Dead letters kept.", ("sink",)),
    Metric("postbus_dead_letters_total", "counter", "Events given up, by sink and reason.", ("sink", "reason")),
    Metric("postbus_best_effort_dropped_total", "counter", "Events to best-effort sinks given up, by reason.", ("sink", "reason")),
    Metric("postbus_deliveries_total", "counter", "Attempts to deliver an event, by outcome.", ("sink", "outcome")),
    Metric("postbus_delivery_seconds", "histogram", "One attempt to deliver an event.", ("sink",), SECONDS),
    Metric("postbus_delivery_lag_seconds", "histogram", "From acceptance to a sink's acknowledgement.", ("sink",), SESSION_SECONDS),
    Metric("postbus_sink_queue_events", "gauge", "Events waiting for a sink.", ("sink",)),
    Metric("postbus_sink_up", "gauge", "1 where the sink answers, 0 where it is down.", ("sink",)),
    Metric("postbus_sink_restarts_total", "counter", "Clients of a sink made again after a fatal error.", ("sink",)),
    # app, sidecar
    Metric("postbus_info", "gauge", "Always 1; the label tells the version.", ("version",)),
    Metric("postbus_draining", "gauge", "1 from the start of a drain."),
    Metric("postbus_reloads_total", "counter", "Configuration reloads, by outcome.", ("outcome",)),
    Metric("postbus_task_restarts_total", "counter", "Supervised tasks that died and were started again.", ("task",)),
    Metric("postbus_loop_lag_seconds", "gauge", "How late the event loop ran its last timer."),
    Metric("postbus_http_requests_total", "counter", "Requests to the sidecar, by status code.", ("code",)),
    Metric("postbus_http_evictions_total", "counter", "Sidecar connections closed for being slow, by reason.", ("reason",)),
    Metric("postbus_admin_actions_total", "counter", "Requests that change state, by action and outcome.", ("action", "outcome")),
    Metric("postbus_log_lines_dropped_total", "counter", "Log lines dropped because standard error was stuck."),
)


def as_markdown() -> str:
    """Return the manual's page of metrics, docs/metrics.md."""
    rows = "".join(
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |\n"
        for metric in METRICS
    )
    return _PAGE.format(rows=rows)


_PAGE = """# Metrics

<!-- Made from the table in `postbus.telemetry.metrics`; a test keeps the two equal. -->

The sidecar serves these at `/metrics`, as Prometheus text or as OpenMetrics where that is asked for, beside the customary `process_*`
figures and `target_info`. Names do not change within a major version. Label values come from the configuration (`listener`, `sink`,
`route`) or from small closed sets, never from a peer, so the number of series is bounded. Times are seconds, sizes octets.

| Metric | Kind | Labels | Meaning |
|---|---|---|---|
{rows}"""
