"""What the commands write, on a terminal and piped."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from postbus.cli import show

ID = "0198c0de-1234-7abc-8def-0123456789ab"


def written(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int = 60) -> io.StringIO:
    """Return where standard output goes from now on."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, highlight=False, soft_wrap=True, markup=False)
    monkeypatch.setattr(show, "OUT", console)
    return file


def test_a_table_is_plain_where_it_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned, never folded, no colour."""
    file = written(monkeypatch, terminal=False, width=20)
    show.table(("event", "outcome"), [(ID, "delivered"), ("x", "a reason that is longer than the line")])
    assert [
        f"event{' ' * 33}outcome",
        f"{ID}  delivered",
        f"x{' ' * 37}a reason that is longer than the line",
    ] == file.getvalue().splitlines()


def test_a_table_has_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are coloured, long cells are folded, ids are not."""
    file = written(monkeypatch, terminal=True)
    show.table(("event", "outcome"), [(ID, "delivered (200)"), ("x", "refused " + "y" * 60)])
    lines = file.getvalue().splitlines()
    assert len(lines) > 3
    assert ID in lines[1]
    assert "\x1b[32mdelivered" in lines[1]


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes the colours (https://no-color.org)."""
    monkeypatch.setenv("NO_COLOR", "1")
    file = written(monkeypatch, terminal=True)
    show.line("said", "red")
    assert "said\n" == file.getvalue()


def test_what_a_peer_says_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No escape sequence, no markup, no second line."""
    file = written(monkeypatch, terminal=True)
    show.line("250 \x1b[2J[red]ok[/red]\r\nfaked")
    assert "250 \\x1b[2J[red]ok[/red]\\r\\nfaked\n" == file.getvalue()


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(0, "0 octets", id="none"),
        pytest.param(1023, "1023 octets", id="few"),
        pytest.param(1536, "1.5 KiB", id="KiB"),
        pytest.param(25 * 1024**2, "25 MiB", id="MiB"),
        pytest.param(3 * 1024**4, "3.0 TiB", id="TiB"),
    ],
)
def test_size(octets: int, expected: str) -> None:
    """With the largest unit that fits."""
    assert expected == show.size(octets)


def test_an_instant_is_in_utc() -> None:
    """To the second; none is a dash."""
    assert ("2023-11-14 22:13:20", "-") == (show.instant(1_700_000_000_123), show.instant(None))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_people_and_long_work(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn where standard error is piped, nor for what is done at once."""
    file = io.StringIO()
    monkeypatch.setattr(show, "ERR", Console(file=file, force_terminal=terminal))
    with show.progress("replay", 10) as tell:
        tell(10)
    assert "" == file.getvalue()
    with show.progress("replay", 10_000) as tell:
        tell(10_000)
    assert terminal == ("10000/10000" in file.getvalue())


STATUS = {
    "version": "1.2.3",
    "state": "serving",
    "uptime_s": 93_784,
    "configuration": {"file": "postbus.yaml", "sha256": "x", "problems": ["routes: wrong"]},
    "listeners": {
        "mx": {"addresses": ["127.0.0.1:25"], "protocol": "smtp", "sessions": 3},
        "off": {"addresses": [], "protocol": "lmtp", "sessions": 0},
    },
    "routes": {"all": {"match": "*", "acceptance": "spool", "mode": "raw", "sinks": "orders"}},
    "sinks": {"orders": {"kind": "kafka", "place": "records of topic mail", "ok": False, "detail": "refused", "owed": 7, "paused": True}},
    "spool": {
        "accepting": False,
        "reason": "full",
        "messages": 2,
        "octets": 2048,
        "free_octets": 1024,
        "dead_letters": 1,
        "damaged": 1,
        "oldest_ms": 0,
    },
}


def test_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, with what is wrong in words."""
    file = written(monkeypatch, terminal=False)
    show.status(STATUS)
    expected = """\
postbus 1.2.3: serving, up 1 d 2 h, configuration postbus.yaml
the last reload was refused: routes: wrong

listener  protocol  addresses     sessions
mx        smtp      127.0.0.1:25  3
off       lmtp      not bound     0

route  recipients  acceptance  mode  sinks
all    *           spool       raw   orders

sink    state   owed  events go to           says
orders  paused  7     records of topic mail  refused

spool: not accepting: full; 2 messages, 2.0 KiB, 1.0 KiB free; oldest undelivered 1970-01-01 00:00:00
1 dead letters: see `postbus dead-letters list`
1 damaged messages set aside: the log says which
"""
    assert expected == file.getvalue()


def test_status_without_a_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding everywhere is said."""
    file = written(monkeypatch, terminal=False)
    show.status({**STATUS, "spool": None})
    assert file.getvalue().endswith("no spool: every route holds\n")
