"""How often a peer has tried a session's patience, and how often is too often: numbers, and the bounds of ``Limits`` they meet."""

from __future__ import annotations

from postbus.smtp import replies
from postbus.smtp.events import Owed, Rcpt
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits


class Tally:
    """The counts of one session. What is asked for a verdict counts first, then answers: a reply, or ``None`` where it is not too much.

    Attributes (to read):
        counting: the session's mails or its recipients' domains are limited, so that ``counted`` has something to say.
        errors: refusals since the last accepted message.
        nuisances: errors and commands without mail beyond what is usual, in the whole session.
        surplus: recipients past the limit in the open transaction; set back to 0 at its end.
    """

    __slots__ = ("_auth_failures", "_domains", "_junk", "_limits", "_mails", "_unknown", "counting", "errors", "nuisances", "surplus")

    def __init__(self, limits: Limits) -> None:
        self.errors = self.nuisances = self.surplus = 0
        self._junk = self._unknown = self._mails = self._auth_failures = 0
        self._domains: frozenset[str] = frozenset()  # of recipients named, where their number is limited
        self.grant(limits)

    def grant(self, limits: Limits) -> None:
        """Measure against *limits* from now on; what was counted stays counted."""
        self._limits = limits
        self.counting = limits.mails > 0 or limits.recipient_domains > 0

    @property
    def exhausted(self) -> bool:
        """Whether the next line is answered with the end of the session."""
        return self.errors >= self._limits.errors

    def error(self) -> None:
        """Count a refusal."""
        self.errors += 1
        self.nuisances += self.errors > self._limits.errors_slow

    def refusal(self, reply: Reply) -> None:
        """Count *reply* if it is an error: 452 for a surplus recipient is one only when there are very many."""
        if reply.code >= 500 or self.surplus > self._limits.recipients_overshoot:
            self.error()

    def forgive(self) -> None:
        """Forget past errors: a peer that delivers mail is no nuisance, and a busy relay makes some in a long session."""
        self.errors = self._junk = self._unknown = 0

    def junk(self) -> Reply | None:
        """Count a command that moves no mail."""
        self._junk += 1
        if self._junk > self._limits.junk:
            return replies.TOO_MUCH_JUNK
        self.nuisances += self._junk > self._limits.junk_slow
        return None

    def unknown(self) -> Reply:
        """Count an unknown verb, and return its answer."""
        self._unknown += 1
        return replies.UNKNOWN if self._unknown <= self._limits.unknown else replies.TOO_MANY_UNKNOWN

    def auth_failure(self) -> Reply | None:
        """Count an AUTH that failed."""
        self._auth_failures += 1
        return replies.TOO_MANY_FAILURES if self._auth_failures >= self._limits.auth_failures else None

    def surplus_recipient(self) -> Reply:
        """Count a recipient past the limit of the transaction, and return its answer."""
        self.surplus += 1
        return replies.TOO_MANY_RECIPIENTS

    def counted(self, verb: str, result: Owed | Reply) -> Owed | Reply:
        """Count the command that *result* was made of, and return *result*, or why the command is one too many for the session."""
        limits = self._limits
        if verb == "MAIL" and limits.mails:
            self._mails += 1
            if self._mails > limits.mails:
                return replies.TOO_MANY_MAILS
        elif limits.recipient_domains and isinstance(result, Rcpt):
            domains = self._domains | {_domain(result.address)}
            if len(domains) > limits.recipient_domains:
                self.surplus += 1
                return replies.TOO_MANY_DOMAINS
            self._domains = domains
        return result


def _domain(address: str) -> str:
    """Return what tells one recipient domain from another; ``""`` for ``postmaster`` without one."""
    return address.rpartition("@")[2].lower() if "@" in address else ""
