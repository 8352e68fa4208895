"""The attack table over live sockets, in the same run as the figures: what is fast here is also safe."""

from __future__ import annotations

import asyncio
from typing import Any

from postbus.app.loop import loop_factory
from postbus.selftest.vectors import Row, rows
from tests.server.test_attacks import play, play_behind

ROW_TIMEOUT_S = 30


def played() -> dict[str, Any]:
    """Play every row against a listener of ours on the loop that ships; return how many got their listed answer, and which did not."""
    failed = [{"row": row.id, "why": why} for row in rows() if (why := _played(row))]
    return {"rows": len(rows()), "passed": len(rows()) - len(failed), "green": not failed, "failed": failed}


def _played(row: Row) -> str:
    """Return why *row* failed; ``""`` when it passed."""
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            played_out = play_behind(row) if row.headed else play(row, implicit=False)
            runner.run(asyncio.wait_for(played_out, ROW_TIMEOUT_S))
    except (AssertionError, OSError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""
