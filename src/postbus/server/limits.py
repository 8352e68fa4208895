"""The limits a session can run into, each a word of a bounded set, for metrics and the session's line. Tables."""

from __future__ import annotations

from collections.abc import Mapping

from postbus.server.clients import TOO_MANY_GUESSES, TOO_MANY_NAMES, TOO_MUCH_MAIL
from postbus.server.timers import Lapse
from postbus.smtp import replies
from postbus.smtp.replies import Reply

SESSION_TOO_BIG = Reply(421, "Too much in one session", "4.7.0")
TOO_PERSISTENT = Reply(421, "Too many requests in a short time, try again later", "4.7.1")

EARLY = "early"
SLOWED = "slowed"
HOPS = "hops"

OF_REPLY: Mapping[Reply, str] = {
    replies.EARLY_TALK: "pipelining",
    replies.NOT_HTTP: "http",
    replies.NOT_TLS: "tls",
    replies.TOO_MANY_ERRORS: "errors",
    replies.TOO_MANY_FAILURES: "auth_failures",
    replies.TOO_MUCH_JUNK: "junk",
    replies.TOO_MANY_UNKNOWN: "unknown",
    replies.ENDLESS_LINE: "endless_line",
    replies.ENDLESS_MESSAGE: "endless_message",
    replies.TOO_FAR_AHEAD: "backlog",
    replies.TOO_MANY_CHUNKS: "chunks",
    replies.TOO_BIG: "size",
    replies.TEXT_LINE_TOO_LONG: "line",
    replies.TOO_MANY_RECIPIENTS: "recipients",
    replies.TOO_MANY_DOMAINS: "recipient_domains",
    SESSION_TOO_BIG: "session_octets",
    replies.TOO_MANY_MAILS: "session_messages",
    TOO_MUCH_MAIL: "message_rate",
    TOO_MANY_GUESSES: "auth_failure_rate",
    TOO_MANY_NAMES: "recipient_rate",
    TOO_PERSISTENT: "persistence",
}
"""The limit that a refusal of ours stands for. 554 before a banner is ``early``, which its reply does not tell from ``pipelining``."""

OF_LAPSE: Mapping[Lapse, str] = {
    Lapse.COMMAND: "command_time",
    Lapse.DATA: "data_rate",
    Lapse.TRANSACTION: "transaction_time",
    Lapse.SESSION: "session_time",
}
"""The limit that a deadline of the peer's is."""
