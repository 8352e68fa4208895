"""kill -9 while commits are waiting: what was acknowledged is there, and nothing is half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bridge.spool.children import committing, held_by, lines

ROUNDS = 20
ACKNOWLEDGED = 200
COMMITTERS = 40


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_kill_under_load(tmp_path: Path) -> None:
    """Twenty kills, each after at least 200 acknowledgements while others wait: nothing acknowledged is missing or altered."""
    ledger = {"tried": 0, "acknowledged": 0, "found": 0, "pending": 0}
    for turn in range(ROUNDS):
        tried: set[str] = set()
        acknowledged: dict[str, str] = {}
        with committing(tmp_path, f"r{turn}-", COMMITTERS, 0, 10) as process:
            for words in lines(process):
                if words[0] == "try":
                    tried.add(words[1])
                elif words[0] == "ack":
                    acknowledged[words[1]] = words[2]
                    if len(acknowledged) == ACKNOWLEDGED + turn * 7:  # not always at the same place in a group
                        process.kill()  # lines already in the pipe still count
        found = await held_by(tmp_path)
        assert acknowledged.items() <= found.items()
        assert found.keys() <= tried
        assert [] == list((tmp_path / "spill").iterdir())
        pending = len(tried) - len(acknowledged)
        assert pending > 0
        for key, count in zip(ledger, (len(tried), len(acknowledged), len(found), pending), strict=True):
            ledger[key] += count
    print("ledger:", ledger)
    assert ledger["acknowledged"] >= ROUNDS * ACKNOWLEDGED
