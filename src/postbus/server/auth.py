"""The vocabulary of AUTH, aiosmtpd's: what authenticators get and return, and how a method says which mechanism it is.

A mechanism is a method ``auth_<MECH>(server, args)`` of the handler or of the server class (``__`` in its name stands for ``-``), or one
marked by ``@auth_mechanism``. The handler's wins. What comes with the server: PLAIN and LOGIN, offered where somebody can judge their
passwords; EXTERNAL, OAUTHBEARER and XOAUTH2, offered where they are asked for by name.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

VALID_AUTHMECH = re.compile(r"[A-Z0-9_-]+")

PASSWORD_MECHANISMS = frozenset({"LOGIN", "PLAIN"})
FURTHER_MECHANISMS = frozenset({"EXTERNAL", "OAUTHBEARER", "XOAUTH2"})


@dataclass(kw_only=True)
class AuthResult:
    """What became of an attempt to authenticate.

    Attributes:
        success: it succeeded.
        handled: the answer has been pushed already; only where *success* is false. Where nothing was pushed, it is 535.
        message: the answer, instead of 235 or 535; where *success* is false only if not *handled*.
        auth_data: whatever describes the user, kept as ``session.auth_data``; its attribute ``login``, if any, names the user.
    """

    success: bool
    handled: bool = True
    message: str | None = None
    auth_data: Any = field(default=None, repr=False)


class LoginPassword(NamedTuple):
    """What PLAIN and LOGIN give an authenticator; the password is in no ``repr``."""

    login: bytes
    password: bytes

    def __str__(self) -> str:
        return f"LoginPassword(login={self.login.decode(errors='backslashreplace')!r}, password=...)"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class BearerToken:
    """What OAUTHBEARER (RFC 7628) and XOAUTH2 give an authenticator.

    Attributes:
        login: whom the client wants to be; ``b""`` where the token alone says it.
        token: the bearer token (RFC 6750), to be checked with who issued it.
    """

    login: bytes
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What EXTERNAL (RFC 4422 appendix A) gives an authenticator: a certificate that TLS has verified against our authorities.

    Attributes:
        login: whom the client wants to be, one of *names*; the subject where it did not say.
        subject: ``CN=...,O=...``.
        names: the subject, its common names, and the alternative names (mail addresses, host names, URIs).
    """

    login: bytes
    subject: str
    names: tuple[str, ...]


AuthCallbackType = Callable[[str, bytes, bytes], bool | Awaitable[bool]]
"""``auth_callback(mechanism, login, password)``."""
AuthenticatorType = Callable[[Any, Any, Any, str, Any], AuthResult | Awaitable[AuthResult]]
"""``authenticator(server, session, envelope, mechanism, auth_data)``, a plain function or a coroutine."""
AuthMechanismType = Callable[[Any, list[str]], Awaitable[Any]]
"""``auth_<MECH>(server, args)``: *args* are the mechanism and, if there is one, the initial response in base64."""


def auth_mechanism(actual_name: str) -> Callable[[_Function], _Function]:
    """Return a decorator that says which mechanism an ``auth_...`` method is, where its name cannot.

    Raises:
        ValueError: no mechanism can have this name.
    """
    name = actual_name.upper()
    if VALID_AUTHMECH.fullmatch(name) is None:
        raise ValueError(f"Invalid AUTH mechanism name: {name}")

    def decorate(function: _Function) -> _Function:
        function.__auth_mechanism_name__ = name  # type: ignore[attr-defined]
        return function

    return decorate


def methods_of(owner: Any) -> dict[str, str]:
    """Return the names of the mechanisms that *owner* has methods for, and of the methods.

    Names in lower case are not mechanisms, unless a decorator says which: ``auth_database`` is more likely a helper.
    """
    found = {}
    for name in dir(owner):
        method = getattr(owner, name) if name.startswith("auth_") else None
        if callable(method):
            mechanism = getattr(method, "__auth_mechanism_name__", name.removeprefix("auth_").replace("__", "-"))
            if VALID_AUTHMECH.fullmatch(mechanism):
                found[mechanism] = name
    return found


def offered(own: Iterable[str], *, judged: bool, wanted: Iterable[str] | None, excluded: Iterable[str]) -> tuple[str, ...]:
    """Return the mechanisms to offer, sorted.

    Args:
        own: mechanisms of the handler, or of a subclass.
        judged: somebody can judge a login and a password.
        wanted: the only ones of ours to offer, by name; None: PLAIN and LOGIN.
        excluded: not to be offered whoever has them.
    """
    ours = (PASSWORD_MECHANISMS if judged else frozenset()) if wanted is None else frozenset(name.upper() for name in wanted)
    return tuple(sorted({*own, *ours} - {name.upper() for name in excluded}))
