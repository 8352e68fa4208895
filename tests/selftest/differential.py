"""The attack table against Postfix and aiosmtpd, and every difference with its reason.

``differences.json`` holds, for each peer and row, what it answers otherwise, and by a key why; ``docs/differential.md`` is made of it.
Basic codes, their number and order, and the end of the connection are compared; enhanced codes are left out, since aiosmtpd has none.
``python -m tests.selftest.differential`` asks the peers, writes down what they answer (a reason that is missing stays to be written),
and makes the page.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import trustme

from postbus.selftest.player import Patience
from postbus.selftest.run import Result, chosen, results
from postbus.selftest.target import Target, learn
from tests.selftest.peers import NEW, OLD, a_postfix, an_aiosmtpd

DATA = Path(__file__).with_name("differences.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "differential.md"

PATIENCE = Patience(reply_s=10.0, close_s=0.3)


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        sections: of the table, that it is asked; alone: rows on which other connections at the same time have an influence.
    """

    title: str
    run: Callable[[trustme.CA], AbstractContextManager[Target]]
    sections: str = "*"
    alone: frozenset[str] = frozenset()


PEERS: Mapping[str, Peer] = {
    "postfix": Peer("Postfix, as it comes since 3.9 (`smtpd_forbid_bare_newline = normalize`)", partial(a_postfix, more=NEW)),
    "postfix-old": Peer("Postfix, as it came before (`smtpd_forbid_bare_newline = no`), section 6.1", partial(a_postfix, more=OLD), "6.1"),
    # its limits of commands are one dict for all connections, which every connection empties and every EHLO raises
    "aiosmtpd": Peer("aiosmtpd 1.4.6", an_aiosmtpd, alone=frozenset({"command-512", "command-allowance"})),
}


@dataclass(frozen=True)
class Answer:
    """What the table expects and what a peer answered, in basic codes; and the self-test's word for it."""

    expected: str
    got: str
    word: str


def asked(name: str) -> dict[str, Answer]:
    """Play the table against a peer; return the answer to each row that could be asked."""
    with PEERS[name].run(trustme.CA()) as target:
        found = asyncio.run(_all(replace(target, patience=PATIENCE), PEERS[name]))
    # whether octets before the banner are seen there is a matter of who is first
    return {one.row.id: answer(one) for one in found if one.played is not None and not one.row.early}


async def _all(target: Target, peer: Peer) -> list[Result]:
    known, table = await learn(target), chosen(peer.sections)
    found = [one async for one in results(target, known, [row for row in table if row.id not in peer.alone], parallel=16)]
    alone = [one async for one in results(target, known, [row for row in table if row.id in peer.alone], parallel=1)]
    order = [row.id for row in table]
    return sorted([*found, *alone], key=lambda one: order.index(one.row.id))


def answer(one: Result) -> Answer:
    """Return what came of a row, comparable."""
    assert one.played is not None
    (_, got), (_, got_after) = one.played.codes("row"), one.played.codes("probe")
    due = "closed" if one.row.closes else "left" if any(step.kind == "eof" for step in one.row.steps) else "open"
    listed = [code for step in one.row.steps for code in step.expect]
    after = [] if due != "open" else ["221"]
    return Answer(_line([*listed, *after], due), _line([*got, *got_after], one.played.end), one.verdict.word)


def _line(codes: Iterable[str], end: str) -> str:
    runs = [(code, len(list(run))) for code, run in groupby(code[:3] for code in codes)]
    return f"{' '.join(code if count == 1 else f'{count}x{code}' for code, count in runs) or '-'}, {end}"


def different(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return the answers that are not the table's."""
    return {row: one for row, one in answers.items() if one.expected != one.got}


def explained() -> dict[str, Any]:
    """Read what is explained."""
    found: dict[str, Any] = json.loads(DATA.read_text("utf-8"))
    return found


def page(data: Mapping[str, Any]) -> str:
    """Return docs/differential.md."""
    lines = [*HEAD]
    for name, peer in PEERS.items():
        rows = data["rows"][name]
        lines += [
            "",
            f"## {peer.title}",
            "",
            f"{len(rows)} rows differ.",
            "",
            "| Row | The table | It answers | Verdict | Because |",
            "|---|---|---|---|---|",
        ]
        for row, entry in rows.items():
            key = entry["because"]
            lines.append(f"| `{row}` | {entry['expected']} | {entry['got']} | {entry['verdict']} | [{key}](#{key}) |")
    lines += ["", "## Reasons"]
    for key, reason in data["reasons"].items():
        lines += ["", f"### {key}", "", reason["what"], "", f"**Who is right:** {reason['right']}"]
    return "\n".join([*lines, ""])


HEAD = (
    "# How others answer",
    "",
    "The attack table (`src/postbus/selftest/attacks.json`) is played against a real Postfix and a real aiosmtpd, by the client that",
    "`postbus selftest` is. This page holds every row to which one of them answers otherwise than the table says, and why; it is made by",
    "`python -m tests.selftest.differential`, and a test fails on a difference without a reason, and on a reason without a difference.",
    "",
    "Compared are the basic codes, how many and in which order, and whether the server hangs up (`closed`) or answers a QUIT behind the",
    "row (`open`, with its 221). `-` is no reply; `left`: the client went. Postfix runs with `smtpd_error_sleep_time = 0`, aiosmtpd with a",
    "handler that takes all but one recipient. What is not here was answered as the table says, or could not be asked (settings those",
    "servers do not have), or rests on who is first (octets before the banner). The verdicts are [those of the self-test](selftest.md).",
)


def main() -> None:
    """Ask the peers, write down what they answer, make the page."""
    logging.disable()
    data = explained() if DATA.exists() else {"reasons": {}, "rows": {}}
    for name in PEERS:
        known = data["rows"].get(name, {})
        data["rows"][name] = {
            row: {"expected": one.expected, "got": one.got, "verdict": one.word, "because": known.get(row, {}).get("because", "")}
            for row, one in different(asked(name)).items()
        }
    DATA.write_text(_compact(data), "utf-8")
    PAGE.write_text(page(data), "utf-8")


def _compact(data: Mapping[str, Any]) -> str:
    """Return *data* as JSON, an entry a line, so that changes can be read."""
    blocks = []
    for name, rows in (("reasons", {"": data["reasons"]}), ("rows", data["rows"])):
        parts = [
            (f"{json.dumps(key)}: " if key else "")
            + "{\n"
            + ",\n".join(f"  {json.dumps(inner)}: {json.dumps(value, ensure_ascii=False)}" for inner, value in entries.items())
            + "\n}"
            for key, entries in rows.items()
        ]
        blocks.append(f"{json.dumps(name)}: " + (parts[0] if name == "reasons" else "{\n" + ",\n".join(parts) + "\n}"))
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    main()
