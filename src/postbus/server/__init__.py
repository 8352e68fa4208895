"""The asyncio shell of the protocol engine, and the library other programs import.

The vocabulary is that of aiosmtpd 1.4: a handler written for it runs after changing its import.
"""

from __future__ import annotations

from postbus.server.auth import AuthResult, BearerToken, ClientCertificate, LoginPassword, auth_mechanism
from postbus.server.body import Body
from postbus.server.controller import Controller, UnixSocketController
from postbus.server.envelope import Envelope
from postbus.server.hooks import MISSING
from postbus.server.listener import Listener
from postbus.server.lmtp import LMTP
from postbus.server.plan import syntax
from postbus.server.session import Session, Tls
from postbus.server.settings import ListenerSettings
from postbus.server.smtp import SMTP
from postbus.server.tls import TlsUnusable
from postbus.smtp.replies import Reply

__all__ = [
    "LMTP",
    "MISSING",
    "SMTP",
    "AuthResult",
    "BearerToken",
    "Body",
    "ClientCertificate",
    "Controller",
    "Envelope",
    "Listener",
    "ListenerSettings",
    "LoginPassword",
    "Reply",
    "Session",
    "Tls",
    "TlsUnusable",
    "UnixSocketController",
    "auth_mechanism",
    "syntax",
]
