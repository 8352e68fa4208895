"""The vocabulary of AUTH, compared with aiosmtpd's."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import aiosmtpd.smtp as theirs
import pytest

import postbus.server.smtp as ours
from postbus.server.auth import BearerToken, methods_of, offered

NAMES = ["AuthResult", "LoginPassword", "auth_mechanism", "AuthCallbackType", "AuthenticatorType", "AuthMechanismType", "MISSING"]
METHODS = ["auth_PLAIN", "auth_LOGIN", "challenge_auth", "check_auth_needed", "smtp_AUTH", "_authenticate"]
PARAMETERS = ["auth_required", "auth_require_tls", "auth_exclude_mechanism", "auth_callback", "authenticator"]


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_where_aiosmtpd_has_them(name: str) -> None:
    """``from postbus.server.smtp import ...`` after ``from aiosmtpd.smtp import ...``."""
    assert hasattr(theirs, name)
    assert hasattr(ours, name)


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_have_aiosmtpds_signatures(name: str) -> None:
    """Parameters by name, order, kind and default."""
    assert shape(getattr(theirs.SMTP, name)) == shape(getattr(ours.SMTP, name))


def shape(function: Any) -> list[tuple[str, Any, Any]]:
    """Return what a caller sees of *function*."""
    return [(parameter.name, parameter.kind, parameter.default) for parameter in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_constructor_has_aiosmtpds_parameters(name: str) -> None:
    """With their defaults."""
    assert (
        inspect.signature(theirs.SMTP.__init__).parameters[name].default == inspect.signature(ours.SMTP.__init__).parameters[name].default
    )


def test_results_are_made_alike() -> None:
    """Keywords only, with aiosmtpd's defaults; what authenticated is in no ``repr``."""
    assert {name: each.default for name, each in inspect.signature(theirs.AuthResult).parameters.items()} == {
        name: each.default for name, each in inspect.signature(ours.AuthResult).parameters.items()
    }
    for module in (theirs, ours):
        result = module.AuthResult(success=True, auth_data="secret")
        assert (True, True, None, "secret") == (result.success, result.handled, result.message, result.auth_data)
        assert "secret" not in repr(result)
        with pytest.raises(TypeError):
            module.AuthResult(True)


def test_a_login_and_its_password() -> None:
    """A pair of octets, the password in neither text form."""
    for module in (theirs, ours):
        pair = module.LoginPassword(b"tim", b"secret")
        assert (b"tim", b"secret") == pair
        assert "secret" not in f"{pair} {pair!r}"
        assert "tim" in str(pair)
    assert "secret" not in repr(BearerToken(b"tim", b"secret"))
    assert "\\xff" in repr(ours.LoginPassword(b"\xff", b""))


def test_challenges_are_aiosmtpds() -> None:
    """What LOGIN asks."""
    assert theirs.SMTP.AuthLoginUsernameChallenge == ours.SMTP.AuthLoginUsernameChallenge
    assert theirs.SMTP.AuthLoginPasswordChallenge == ours.SMTP.AuthLoginPasswordChallenge


class Mechanisms:
    """Has some."""

    auth_TABLE: ClassVar[dict[str, str]] = {"tim": "secret"}  # noqa: N815 - no method, though its name is a mechanism's

    def auth_DENY__ALL(self, server: Any, args: list[str]) -> None:
        """DENY-ALL."""

    @ours.auth_mechanism("x-mine")
    def auth_mine(self, server: Any, args: list[str]) -> None:
        """X-MINE."""

    def auth_lookup(self, name: str) -> None:
        """No mechanism."""


def test_methods_make_mechanisms() -> None:
    """By name, or by decorator; what is no method, or in lower case, is none."""
    assert {"DENY-ALL": "auth_DENY__ALL", "X-MINE": "auth_mine"} == methods_of(Mechanisms())


@pytest.mark.parametrize("name", ["", "a b", "X.Y", "\u00dc"])
def test_names_no_mechanism_can_have(name: str) -> None:
    """As in aiosmtpd, at once."""
    for module in (theirs, ours):
        with pytest.raises(ValueError, match="Invalid AUTH mechanism name"):
            module.auth_mechanism(name)


@pytest.mark.parametrize(
    ("own", "judged", "wanted", "excluded", "expected"),
    [
        pytest.param([], False, None, [], (), id="nobody judges"),
        pytest.param([], True, None, [], ("LOGIN", "PLAIN"), id="somebody judges passwords"),
        pytest.param(["X"], False, None, [], ("X",), id="one's own"),
        pytest.param(["X"], True, None, ["login"], ("PLAIN", "X"), id="one left out"),
        pytest.param([], True, ["external", "PLAIN"], [], ("EXTERNAL", "PLAIN"), id="by name"),
        pytest.param(["X"], True, [], [], ("X",), id="none of ours"),
    ],
)
def test_what_is_offered(own: list[str], judged: bool, wanted: list[str] | None, excluded: list[str], expected: tuple[str, ...]) -> None:
    """Sorted, as in aiosmtpd."""
    assert expected == offered(own, judged=judged, wanted=wanted, excluded=excluded)
