"""How often is too often: errors, junk, unknown verbs, mails, recipients and their domains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from postbus.smtp import Limits, Reply, replies
from postbus.smtp.tally import Tally
from tests.smtp.driver import OFFER, Driver, Policy, codes

NO = Reply(550, "No", "5.7.1")
LATER = Reply(450, "Later", "4.7.1")


def test_what_is_counted_has_a_bound() -> None:
    """Each count answers with a refusal past its own bound, and an accepted message forgives all but the session's own."""
    tally = Tally(Limits(junk=1, unknown=1, auth_failures=2, errors=1))
    assert [None, replies.TOO_MUCH_JUNK] == [tally.junk() for _ in range(2)]
    assert [replies.UNKNOWN, replies.TOO_MANY_UNKNOWN] == [tally.unknown() for _ in range(2)]
    assert [None, replies.TOO_MANY_FAILURES] == [tally.auth_failure() for _ in range(2)]
    tally.error()
    assert tally.exhausted
    tally.forgive()
    assert (tally.exhausted, tally.errors) == (False, 0)
    assert [None, replies.UNKNOWN, replies.TOO_MANY_FAILURES] == [tally.junk(), tally.unknown(), tally.auth_failure()]


def test_answers_count_as_errors_only_when_permanent() -> None:
    """A 4xx is our trouble, not the peer's; a 5xx counts, and an accepted message clears the slate."""
    driver = Driver(policy=Policy(answers={"MAIL": LATER}))
    driver.feed(b"EHLO x\r\n")
    driver.feed(b"MAIL FROM:<a@b>\r\n" * 50)
    assert driver.engine.errors == 0
    driver.policy = Policy(answers={"RCPT": NO})
    driver.feed(b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<c@d>\r\n" * 5)
    assert driver.engine.errors == 5
    driver.policy = Policy()
    driver.feed(b"RCPT TO:<c@d>\r\nDATA\r\n")
    driver.feed(b".\r\n")
    assert driver.engine.errors == 0


def test_lmtp_forgives_when_one_recipient_got_it() -> None:
    """One delivered recipient is a delivered message."""
    driver = Driver(lmtp=True, policy=Policy(answers={".": [replies.OK, LATER]}))
    driver.feed(b"XYZZY\r\n")
    driver.feed(b"LHLO x\r\n")
    driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n")
    assert driver.engine.errors == 1
    driver.feed(b".\r\n")
    assert driver.engine.errors == 0


def test_surplus_recipients() -> None:
    """Recipients past the limit get 452; only very many of them are errors, since a sender may have pipelined them."""
    driver = Driver(limits=Limits(recipients=1, recipients_overshoot=2))
    driver.feed(b"EHLO x\r\n")
    driver.feed(b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<c@d>\r\n" * 3)
    assert (driver.engine.accepted_recipients, driver.engine.errors) == (1, 0)
    driver.feed(b"RCPT TO:<c@d>\r\n" * 2)
    assert (driver.engine.accepted_recipients, driver.engine.errors) == (1, 2)


@pytest.mark.parametrize("refused", ["MAIL FROM:<a@b>", "MAIL FROM:<a", "MAIL FROM:<a@b> X-FOO"])
def test_mailmax_counts_every_mail_command(refused: str) -> None:
    """What LIMITS says is what is enforced: the MAIL after MAILMAX of them, well-formed or not, ends the session (RFC 9422 s4.1)."""
    driver = Driver(replace(OFFER, limits=True), limits=Limits(mails=2))
    assert b"250-LIMITS MAILMAX=2 RCPTMAX=1000\r\n" in driver.feed(b"EHLO x\r\n")
    assert ["250 2.1.0", "250 2.0.0"] == codes(driver.feed(b"MAIL FROM:<a@b>\r\nRSET\r\n"))
    driver.feed(refused.encode() + b"\r\nRSET\r\n")
    assert ["421 4.7.0"] == codes(driver.feed(b"MAIL FROM:<a@b>\r\n"))
    assert driver.closed


def test_rcptdomainmax_counts_the_domains_of_a_session() -> None:
    """One domain too many is 452, in any transaction; those known stay welcome, whatever their case (RFC 9422 s4.3)."""
    driver = Driver(limits=Limits(recipient_domains=2), policy=Policy(refuses=frozenset({"x@two.test"})))
    driver.feed(b"EHLO x\r\n")
    first = driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<x@one.test>\r\nRCPT TO:<x@two.test>\r\nRCPT TO:<x@three.test>\r\nRSET\r\n")
    assert ["250 2.1.0", "250 2.1.5", "550 5.1.1", "452 4.5.3", "250 2.0.0"] == codes(first)
    second = driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<Postmaster>\r\nRCPT TO:<y@TWO.test>\r\nRCPT TO:<z@four.test>\r\n")
    assert ["250 2.1.0", "452 4.5.3", "250 2.1.5", "452 4.5.3"] == codes(second)


def test_limits_can_be_granted_anew_at_a_greeting() -> None:
    """The shell lowers them while it is under pressure; what was said at the greeting is what counts."""
    driver = Driver(replace(OFFER, limits=True))
    driver.engine.grant(Limits(mails=1, recipients=1))
    assert b"LIMITS MAILMAX=1 RCPTMAX=1\r\n" in driver.feed(b"EHLO x\r\n")
    said = driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@d>\r\nRSET\r\nMAIL FROM:<a@b>\r\n")
    assert ["250 2.1.0", "250 2.1.5", "452 4.5.3", "250 2.0.0", "421 4.7.0"] == codes(said)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param([b"MAIL\r\n"] * 3, 1, id="an error too many"),
        pytest.param([b"MAIL\r\n"] * 2, 0, id="errors as usual"),
        pytest.param([b"NOOP\r\n"] * 4, 3, id="junk, EHLO included"),
        pytest.param([b"XX\r\n"] * 3, 1, id="unknown verbs are errors"),
        pytest.param([b"MAIL\r\n"] * 9, 2, id="no nuisance is counted for a last word"),
    ],
)
def test_nuisances_are_what_goes_beyond_the_usual(said: list[bytes], expected: int) -> None:
    """A shell answers slower for each; the engine's answers are the same."""
    driver = Driver(OFFER, limits=Limits(errors_slow=2, junk_slow=2, errors=4))
    driver.feed(b"EHLO x\r\n")
    before = driver.engine.nuisances
    for line in said:
        driver.feed(line)
    assert expected == driver.engine.nuisances - before
