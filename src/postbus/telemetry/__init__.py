"""Every log line, metric and span, as one function per fact, taking primitives.

The sole owner of opentelemetry and logging. A fact bumps plain numbers (``_count``, ``_observe``, ``_put``) that observable
instruments read when scraped, and writes at most one line (``_log``). A count costs 0.2 us, a line 3 us, an unsampled span 0.2 us.

- ``metrics``: the table of metrics; a new metric is a new row.   ``numbers``: the cells that facts bump.
- ``lines``: the log.   ``spans``: traces, off unless an OTLP endpoint is configured.
- ``exposition`` (imports OpenTelemetry, so import it only where /metrics is served) renders the numbers for Prometheus.

House words: mail addresses only through ``address()``; no message content, ever; label values from our configuration or from our
own closed sets, never from a peer.
"""

from __future__ import annotations

from postbus.telemetry.lines import LOG
from postbus.telemetry.numbers import NUMBERS
from postbus.telemetry.spans import TRACING, Trace

__all__ = ["Trace", "address", "configure", "flush", "trace_start", "watch"]

_count = NUMBERS.count
_observe = NUMBERS.observe
_put = NUMBERS.put
_log = LOG.log

watch = NUMBERS.watch
"""``watch(gauge, read)``: *read* is asked at each scrape for {label values: number}; returns a function that ends it."""
address = LOG.address
"""A mail address as ``log_addresses`` allows it in a log line."""
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
