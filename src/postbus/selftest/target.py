"""A server to test: where it is, how to come in, and what it says of itself."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from postbus.selftest.fitting import Known, Names
from postbus.selftest.player import Patience
from postbus.selftest.wire import Address, Reply, Wire, connected

Encryption = Literal["none", "starttls", "implicit"]


class UnusableError(Exception):
    """The server cannot be tested like this: what is in the way, and what would help."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


@dataclass(frozen=True)
class Target:
    """A server to test.

    Attributes:
        encryption: how rows are played; those about plain text and STARTTLS begin in plain text under ``starttls`` too.
        context: for TLS; name: of the server in its certificate.
        names: the addresses it knows; test_user: it knows the table's one user.
    """

    address: Address
    protocol: Literal["smtp", "lmtp"] = "smtp"
    encryption: Encryption = "none"
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    name: str = ""
    names: Names = field(default_factory=Names)
    patience: Patience = field(default_factory=Patience)
    test_user: bool = False

    @property
    def hello(self) -> bytes:
        """The command that greets it."""
        return (b"LHLO " if self.protocol == "lmtp" else b"EHLO ") + self.names.helo.encode() + b"\r\n"

    @property
    def certificate_name(self) -> str:
        """The name its certificate must have."""
        return self.name or (self.address.host if self.address.path is None else "localhost")

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[Wire]:
        """Give a connection as it is: in TLS from the first octet, or in plain text. Raises OSError."""
        context = self.context if self.encryption == "implicit" else None
        async with asyncio.timeout(self.patience.reply_s) as deadline, connected(self.address, context, self.certificate_name) as wire:
            deadline.reschedule(None)
            yield wire

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[Wire]:
        """Give a connection that is greeted and in TLS by STARTTLS. Raises OSError (also if the server refuses)."""
        async with self.plain() as wire:
            for command, wanted in ((b"", "220"), (self.hello, "250"), (b"STARTTLS\r\n", "220")):
                reply = await ask(wire, command, self.patience)
                if reply is None or reply.code[:3] != wanted:
                    raise OSError(f"{reply.code if reply else 'nothing'} to {command.decode().strip() or 'the connection'}")
            async with asyncio.timeout(self.patience.reply_s):
                await wire.shake_hands(self.context, self.certificate_name)
            wire.greeted = True
            yield wire


async def ask(wire: Wire, command: bytes, patience: Patience) -> Reply | None:
    """Send *command* and return the reply; ``None`` if none comes in time."""
    wire.send(command)
    try:
        async with asyncio.timeout(patience.reply_s):
            return await wire.reply()
    except TimeoutError:
        return None


async def learn(target: Target) -> Known:
    """Ask the server what it offers, and whether the addresses are what they are said to be; nothing is sent.

    Raises:
        UnusableError: it cannot be reached, or does not take what it must.
    """
    tls_trouble = ""
    try:
        async with target.plain() as wire:
            keywords = await _keywords(target, wire, greeted=False)
            mail = await _said(wire, b"MAIL FROM:<" + target.names.sender.encode() + b">\r\n", target)
        if target.encryption != "implicit" and "STARTTLS" in keywords:
            tls_trouble = await _tls_trouble(target)
        known = Known(
            target.protocol,
            encrypted=target.encryption == "implicit",
            starttls=target.encryption == "starttls",
            keywords=keywords,
            plain_keywords=keywords,
            tls_first=mail[:3] == "530" and "STARTTLS" in keywords,
            tls_trouble=tls_trouble,
            test_user=target.test_user,
        )
        if known.starttls:
            return await _learn_inside(target, known)
        if not known.tls_first:
            async with target.plain() as wire:
                await _keywords(target, wire, greeted=False)
                await _check_addresses(target, wire)
    except TimeoutError as error:
        raise UnusableError(f"{target.address} does not answer within {target.patience.reply_s:g} s", "does it want --tls?") from error
    except ssl.SSLError as error:
        raise UnusableError(f"TLS with {target.address} failed: {trouble(error)}", _TLS_REMEDY) from error
    except OSError as error:
        raise UnusableError(f"{target.address} cannot be reached: {trouble(error)}", "is it running, and is that its port?") from error
    return known


_TLS_REMEDY = "say --ca FILE or --insecure, or leave --tls and --starttls away"


async def _learn_inside(target: Target, known: Known) -> Known:
    """Learn what the server says behind STARTTLS."""
    if "STARTTLS" not in known.keywords:
        raise UnusableError(f"{target.address} does not announce STARTTLS", "leave --starttls away, or give the server a certificate")
    if known.tls_trouble:
        raise UnusableError(f"STARTTLS with {target.address} failed: {known.tls_trouble}", _TLS_REMEDY)
    async with target.inside() as wire:
        inner = await _keywords(target, wire, greeted=True)
        await _check_addresses(target, wire)
    return replace(known, keywords={**inner, "STARTTLS": ""})


async def _tls_trouble(target: Target) -> str:
    try:
        async with target.inside():
            return ""
    except (OSError, TimeoutError) as error:
        return trouble(error)


async def _keywords(target: Target, wire: Wire, *, greeted: bool) -> dict[str, str]:
    """Read the banner unless *greeted*, say EHLO, return what it announces."""
    if not greeted:
        banner = await ask(wire, b"", target.patience)
        if banner is None:
            raise UnusableError(f"{target.address} hangs up before its banner, or sends none", "does it want --tls? Its log may say why")
        if banner.code[:3] != "220":
            raise UnusableError(f"{target.address} greets with {banner.code}", "its log says why")
    reply = await ask(wire, target.hello, target.patience)
    if reply is None or reply.code[:3] != "250":
        other = "leave --lmtp away if it speaks SMTP" if target.protocol == "lmtp" else "say --lmtp if it speaks LMTP"
        raise UnusableError(f"{target.address} answers {reply.code if reply else 'nothing'} to {target.hello.decode().strip()}", other)
    words = [line[4:].upper().partition(" ") for line in reply.lines[1:]]
    return {keyword: value for keyword, _, value in words}


async def _said(wire: Wire, command: bytes, target: Target) -> str:
    reply = await ask(wire, command, target.patience)
    return reply.code if reply else "nothing"


async def _check_addresses(target: Target, wire: Wire) -> None:
    """See that the sender and the recipient are taken, and the refused one is not."""
    names = target.names
    asked = [
        (f"MAIL FROM:<{names.sender}>", "2", "name a sender it takes with --sender"),
        (f"RCPT TO:<{names.recipient}>", "2", _RECIPIENT),
    ]
    if names.refused is not None:
        asked.append((f"RCPT TO:<{names.refused}>", "5", "name a recipient it refuses with --refused"))
    for command, wanted, remedy in asked:
        code = await _said(wire, command.encode() + b"\r\n", target)
        if code[:3] == "530":
            raise UnusableError(
                f"{target.address} answers {code} to {command}", "it wants a login before mail: test a listener that does not"
            )
        if code[:1] != wanted:
            raise UnusableError(f"{target.address} answers {code} to {command}", remedy)


_RECIPIENT = "name a recipient it takes with --recipient"


def trouble(error: BaseException) -> str:
    """Return what went wrong, in a few words of our own or of the system."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "handshake failed").lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0).lower()  # asyncio's own words hold its internals
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def is_local(address: Address) -> bool:
    """Return whether *address* is on this machine's loopback or a Unix socket, whatever name it was given by.

    Raises:
        OSError: the name cannot be resolved.
    """
    if address.path is not None:
        return True
    found = {info[4][0] for info in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)}
    return all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in found)
