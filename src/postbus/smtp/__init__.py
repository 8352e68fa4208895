"""SMTP and LMTP without I/O: bytes in, events out; replies in, bytes out.

Begin reading at ``engine`` (the contract), then ``states`` (what may come when) and ``commands`` (the verb table).
"""

from postbus.smtp.engine import Engine, OutOfTurn
from postbus.smtp.events import (
    Auth,
    AuthResponse,
    Bdat,
    Chunk,
    Command,
    DataStart,
    EndOfMessage,
    Event,
    Expn,
    Helo,
    Help,
    Mail,
    Noop,
    Owed,
    Quit,
    Rcpt,
    Refused,
    Rset,
    Signal,
    StartTls,
    Vrfy,
    Xclient,
    Xforward,
)
from postbus.smtp.replies import Reply
from postbus.smtp.states import State
from postbus.smtp.terms import Limits, Offer

__all__ = [
    "Auth",
    "AuthResponse",
    "Bdat",
    "Chunk",
    "Command",
    "DataStart",
    "EndOfMessage",
    "Engine",
    "Event",
    "Expn",
    "Helo",
    "Help",
    "Limits",
    "Mail",
    "Noop",
    "Offer",
    "OutOfTurn",
    "Owed",
    "Quit",
    "Rcpt",
    "Refused",
    "Reply",
    "Rset",
    "Signal",
    "StartTls",
    "State",
    "Vrfy",
    "Xclient",
    "Xforward",
]
