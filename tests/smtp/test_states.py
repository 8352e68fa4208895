"""The transition table: every row of it, and that no row could be otherwise without a test saying so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from postbus.smtp import Reply, State, states
from postbus.smtp.commands import VERBS
from postbus.smtp.replies import UNKNOWN
from postbus.smtp.states import Row as Transition
from tests.smtp import sequence
from tests.smtp.test_dialogs import DIALOGS, play

LAST_OF_FAILED = states.SMTP[State.FAILED]["."]  # the engine's own way out, on 5 alone
TABLES = {"smtp": states.SMTP, "lmtp": states.LMTP}


@pytest.mark.parametrize("row", list(sequence.rows()), ids=lambda row: row.id)
def test_sequence(row: sequence.Row) -> None:
    """Each state answers each command with the code of the matrix and goes where it says."""
    sequence.check(row)


@pytest.mark.parametrize("protocol", TABLES)
def test_the_table_is_total(protocol: str) -> None:
    """Every state that reads commands has a row for every verb, so that none is left to chance."""
    apart = {State.CONTENT: {"."}, State.AUTHENTICATING: {"="}, State.CHUNK: {".", "BDAT"}, State.FAILED: {".", *VERBS}}
    for state, moves in TABLES[protocol].items():
        assert set(moves) == apart.get(state, set(VERBS)), state


def test_a_transaction_is_what_the_diagram_says() -> None:
    """The states in which something would be lost are these, and FAILED, where a message still has to end."""
    chunking = {State.CHUNK, State.CHUNKS, State.FAILED}
    assert {State.SENDER, State.REFUSED, State.RECIPIENTS, State.CONTENT} | chunking == states.TRANSACTION


def mutations() -> Iterator[Any]:
    """Yield each reachable row of both tables with each small damage done to it: refused, allowed, led elsewhere, led nowhere."""
    absent = {"smtp": {"LHLO"}, "lmtp": {"HELO", "EHLO"}}
    for protocol, table in TABLES.items():
        for state, moves in table.items():
            for verb, row in moves.items():
                if verb in absent[protocol]:
                    continue
                for name, damaged in damages(state, row):
                    yield pytest.param(protocol, state, verb, damaged, id=f"{protocol}-{state.name}-{verb}-{name}")


def damages(state: State, row: Transition) -> Iterator[tuple[str, Transition]]:
    """Yield *row* with one thing wrong with it."""
    if isinstance(row, Reply):
        yield "allowed", {}
        return
    if state not in (State.CONTENT, State.CHUNK) and row != LAST_OF_FAILED:
        yield "refused", UNKNOWN
    if row != LAST_OF_FAILED:
        yield "moves", {**row, 2: next(other for other in (State.SENDER, State.REFUSED) if other not in (state, row.get(2)))}
    for digit, target in row.items():
        if target is not state:
            yield f"{digit}-stays", {key: value for key, value in row.items() if key != digit}
        yield f"{digit}-elsewhere", {**row, digit: State.CLOSED if target is not State.CLOSED else State.GREETED}


def unharmed(protocol: str, state: State) -> bool:
    """Return whether the matrix's rows for *state* and all dialogs still pass."""
    try:
        for row in sequence.rows():
            if row.lmtp == (protocol == "lmtp") and row.state is state:
                sequence.check(row)
        for dialog in DIALOGS:
            play(dialog, "whole")
    except Exception:  # noqa: BLE001 - a damaged table may fail in any way
        return False
    return True


def test_there_are_many_mutations() -> None:
    """At least twenty rows are damaged."""
    assert len(list(mutations())) > 200


@pytest.mark.parametrize(("protocol", "state", "verb", "damaged"), list(mutations()))
def test_a_damaged_row_is_noticed(protocol: str, state: State, verb: str, damaged: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every damage to every row makes a row of the matrix or a dialog fail."""
    monkeypatch.setitem(cast("dict[str, Transition]", TABLES[protocol][state]), verb, damaged)
    assert not unharmed(protocol, state)
