"""smtp-source, Postfix's own load generator, over SMTP and LMTP: as many events as accepted recipients, whatever the sizes."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.e2e.harness import Postbus, running, tree
from tests.peers import need

KIB = 1024


@pytest.fixture(scope="module")
def postbus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postbus]:
    """One postbus with SMTP and LMTP; a small spill threshold, so that most sizes go both ways."""
    folder = tmp_path_factory.mktemp("source")
    listeners = {
        "smtp": {"address": "127.0.0.1:0", "spill_threshold_octets": 32 * KIB},
        "lmtp": {"address": f"unix:{folder}/lmtp.sock", "protocol": "lmtp", "spill_threshold_octets": 32 * KIB},
    }
    with running(folder, tree(listeners=listeners)) as started:
        yield started


@pytest.mark.parametrize(("listener", "arguments"), [pytest.param("smtp", [], id="SMTP"), pytest.param("lmtp", ["-L"], id="LMTP")])
@pytest.mark.parametrize(
    ("octets", "messages", "recipients", "sessions"),
    [
        pytest.param(KIB, 400, 1, 10, id="1 KiB"),
        pytest.param(KIB, 60, 5, 10, id="1 KiB to 5"),
        pytest.param(32 * KIB, 60, 2, 10, id="32 KiB to 2"),
        pytest.param(1024 * KIB, 16, 2, 8, id="1 MiB to 2"),
    ],
)
def test_counts_are_equal(
    postbus: Postbus, listener: str, arguments: Sequence[str], octets: int, messages: int, recipients: int, sessions: int
) -> None:
    """Every recipient of every message has one event, and every message its size; sessions are used again."""
    program = need("smtp-source", "install postfix")
    name = f"{listener}-{octets}-{recipients}"
    before = len(postbus.events())
    address = postbus.address(listener)
    where = f"unix:{address}" if address.startswith("/") else f"inet:{address}"
    load = ["-s", str(sessions), "-m", str(messages), "-l", str(octets), "-r", str(recipients), "-d"]
    done = subprocess.run(
        [program, *arguments, *load, "-t", f"{name}@example.org", "-f", "load@example.net", where],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    found = postbus.wait_events(before + messages * recipients)[before:]
    postbus.wait_delivered()
    assert messages * recipients == len(postbus.events()) - before
    assert messages * recipients == len({event["id"] for event in found})
    transactions = Counter(event["data"]["transactionId"] for event in found)
    assert {recipients: messages} == Counter(transactions.values())
    sizes = {event["data"]["message"]["sizeBytes"] for event in found}
    assert all(octets <= size < octets + 500 for size in sizes), sizes
    assert [] == [line for line in postbus.log.lines if line["level"] == "error"]
