"""Ten thousand connections that say nothing: resident memory of the listener for each."""

from __future__ import annotations

from pathlib import Path

from tests.bench.figures import Series
from tests.bench.measuring import Plan, child, line_of, listener
from tests.e2e.certificates import Authority

CONNECTIONS = 10_000
WARM_UP = 200
KIB = 1024
ROUNDS_MAX = 3
"""Each takes a fresh listener, and on TLS 10,000 handshakes."""


def plain(plan: Plan) -> tuple[Series, None, str]:
    """Without TLS."""
    return _measured(plan, None)


def tls(plan: Plan) -> tuple[Series, None, str]:
    """On implicit TLS, an ECDSA certificate."""
    folder = plan.folder / "certificates"
    folder.mkdir(exist_ok=True)
    pair = Authority(folder).issue()
    return _measured(plan, (pair.certificate, pair.key))


def _measured(plan: Plan, pair: tuple[Path, Path] | None) -> tuple[Series, None, str]:
    found = []
    for number in range(1, min(plan.rounds, ROUNDS_MAX) + 1):
        plan.say(f"round {number}")
        found.append(_each(plan.count(CONNECTIONS), pair) / KIB)
    return Series("KiB", tuple(found)), None, f"{plan.count(CONNECTIONS)} connections, after {WARM_UP} that came and went"


def _each(count: int, pair: tuple[Path, Path] | None) -> float:
    """Return octets of the listener's memory for each of *count* idle connections."""
    with listener("plain", *(("--tls", *map(str, pair)) if pair else ())) as server:
        _open(server.address, min(count, WARM_UP), pair is not None)
        before_octets = server.process.memory_info().rss
        with child("tests.bench.idlers", server.address, str(count), *(["tls"] if pair else [])) as clients:
            assert line_of(clients) == f"open {count}"
            grown_octets: int = server.process.memory_info().rss - before_octets
            return grown_octets / count


def _open(address: str, count: int, secure: bool) -> None:
    with child("tests.bench.idlers", address, str(count), *(["tls"] if secure else [])) as clients:
        assert line_of(clients) == f"open {count}"
