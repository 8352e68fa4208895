"""Settings, token, pulse: the small parts of the sidecar."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from postbus.sidecar.pulse import Pulse
from postbus.sidecar.settings import SidecarSettings, address_of
from postbus.sidecar.token import admits, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("127.0.0.1:8080", ("127.0.0.1", 8080), id="host and port"),
        pytest.param("[::1]:0", ("::1", 0), id="IPv6"),
        pytest.param(":8080", ("", 8080), id="all interfaces"),
        pytest.param("*:8080", ("", 8080), id="all interfaces, starred"),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """An address is read in each of its forms."""
    assert expected == address_of(text)


@pytest.mark.parametrize("text", ["8080", "localhost", "::1:8080", "localhost:http", "localhost:70000", "localhost:-1", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    """The settings name the field and the forms."""
    with pytest.raises(ValidationError, match="address"):
        SidecarSettings(address=text)


def test_the_token_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    """A rotated secret counts at once; a file that is gone or empty is no token."""
    file = tmp_path / "token"
    token = tokens(SidecarSettings(token_file=file, token_env="IGNORED"), {"IGNORED": "x"})
    assert token() is None
    file.write_text("first\n")
    assert "first" == token()
    file.write_text("second\n")
    assert "second" == token()
    file.write_text("\n")
    assert token() is None


def test_the_token_may_come_from_the_environment() -> None:
    """By the name of a variable; empty is none, and no reference is none."""
    assert "t" == tokens(SidecarSettings(token_env="ADMIN"), {"ADMIN": " t\n"})()
    assert tokens(SidecarSettings(token_env="ADMIN"), {"ADMIN": ""})() is None
    assert tokens(SidecarSettings(), {"ADMIN": "x"})() is None


def test_the_scheme_is_read_in_any_case() -> None:
    """RFC 9110 s11.1: scheme names are case-insensitive."""
    assert admits("secret", "bearer secret")
    assert not admits("secret", "Bearer Secret")


async def test_the_pulse_beats_by_itself() -> None:
    """Run as a task it takes the time again and again."""
    now = [100.0]
    pulse = Pulse(interval_s=0.0, clock=lambda: now[0])
    now[0] = 107.0
    beating = asyncio.create_task(pulse.run())
    async with asyncio.timeout(10):
        while pulse.lag_s:
            await asyncio.sleep(0)
    beating.cancel()
    assert 0.0 == pulse.lag_s


def test_a_late_loop_fails_its_check_until_it_keeps_time_again() -> None:
    """The lag counts while the loop is stuck, and after it, until the next beat in time."""
    now = [100.0]
    pulse = Pulse(interval_s=1.0, clock=lambda: now[0])
    now[0] = 101.0
    pulse.beat()
    assert (True, "loop") == (pulse.check(5).ok, pulse.check(5).name)
    now[0] = 109.0
    assert not pulse.check(5).ok
    pulse.beat()
    assert (False, 7.0) == (pulse.check(5).ok, pulse.lag_s)
    now[0] = 110.0
    pulse.beat()
    assert pulse.check(5).ok
