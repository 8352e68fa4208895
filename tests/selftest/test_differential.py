"""Postfix and aiosmtpd, asked what we are asked: every difference has its reason, and every reason its difference."""

from __future__ import annotations

import pytest

from postbus.selftest.vectors import rows
from tests.selftest.differential import PAGE, PEERS, Answer, asked, different, explained, page


@pytest.mark.parametrize("peer", PEERS)
def test_every_difference_is_explained(peer: str) -> None:
    """What the peer answers otherwise is written down as it answers it, with a reason; and nothing else is."""
    found = different(asked(peer))
    known = {row: Answer(one["expected"], one["got"], one["verdict"]) for row, one in explained()["rows"][peer].items()}
    assert known == found


def test_a_difference_has_a_reason_that_is_there() -> None:
    """And no reason is left over."""
    data = explained()
    used = {entry["because"] for entries in data["rows"].values() for entry in entries.values()}
    assert set(data["reasons"]) == used
    assert all(reason["what"] and reason["right"] for reason in data["reasons"].values())


def test_only_rows_of_the_table_are_explained() -> None:
    """A row that is gone takes its explanations with it."""
    ids = {row.id for row in rows()}
    assert [] == [row for entries in explained()["rows"].values() for row in entries if row not in ids]


def test_the_self_test_finds_what_others_found() -> None:
    """CVE-2023-51764 in Postfix as it came before 3.9, and not since; a bare LF that ends a command in aiosmtpd."""
    verdicts = {peer: {row: one["verdict"] for row, one in entries.items()} for peer, entries in explained()["rows"].items()}
    assert "FAIL" == verdicts["postfix-old"]["eod-lf-dot-lf"]
    assert "FAIL" not in {word for row, word in verdicts["postfix"].items() if row.startswith("eod-")}
    assert "FAIL" == verdicts["aiosmtpd"]["bare-lf-command"]


def test_the_page_says_what_is_explained() -> None:
    """docs/differential.md is made, not written."""
    assert page(explained()) == PAGE.read_text("utf-8"), "python -m tests.selftest.differential"
