"""The transaction against a model: a dozen lines that know nothing of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from postbus.smtp import Reply
from tests.smtp.driver import OFFER, Driver, Policy, codes, pipelined

ANSWERS: Mapping[int, Reply] = {2: Reply(250, "Yes"), 4: Reply(450, "Later"), 5: Reply(550, "No")}
SIZE_MAX = 50
DIGITS = st.sampled_from([2, 2, 2, 4, 5])


@dataclass
class Model:
    """What a transaction is: a sender, recipients named and accepted; and whether the peer has greeted."""

    greeted: bool = False
    sender: bool = False
    utf8: bool = False
    named: int = 0
    accepted: list[str] = field(default_factory=list)
    content: bool = False
    chunked: bool = False
    failed: bool = False

    def forget(self) -> None:
        """End the transaction, however it ended."""
        self.sender = self.utf8 = self.content = self.chunked = self.failed = False
        self.named, self.accepted = 0, []


class Transactions(RuleBasedStateMachine):
    """Random commands with random answers; the engine must never remember more or less than the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.sent = 0
        self.driver = Driver(pipelined(replace(OFFER, size_octets=SIZE_MAX)))

    def say(self, line: str, digit: int, verb: str) -> str:
        """Send *line*, have *verb* answered with *digit*, return the first digit that came back."""
        self.driver.engine.tally.forgive()  # budgets have their own tests
        self.driver.policy = Policy(answers={verb: ANSWERS[digit]})
        (code,) = codes(self.driver.feed(line.encode()))
        return code[0]

    def reads_commands(self) -> bool:
        """Whether the peer may send commands now."""
        return not self.model.content

    @rule(digit=DIGITS, verb=st.sampled_from(["EHLO", "HELO"]))
    def greet(self, digit: int, verb: str) -> None:
        """A greeting that is answered well ends any transaction."""
        if self.reads_commands():
            assert str(digit) == self.say(f"{verb} x\r\n", digit, verb)
            if digit == 2:
                self.model.greeted = True
                self.model.forget()

    @rule(digit=DIGITS, utf8=st.booleans())
    def mail(self, digit: int, utf8: bool) -> None:
        """MAIL begins a transaction where there is none."""
        if self.reads_commands():
            legal = self.model.greeted and not self.model.sender
            assert (str(digit) if legal else "5") == self.say(f"MAIL FROM:<a@b>{' SMTPUTF8' * utf8}\r\n", digit, "MAIL")
            if legal and digit == 2:
                self.model.sender, self.model.utf8 = True, utf8

    @rule(digit=DIGITS, address=st.sampled_from(["c@d", "ü@d", "bad"]))
    def rcpt(self, digit: int, address: str) -> None:
        """RCPT adds a recipient to a transaction; one that is not ASCII only where MAIL said so."""
        if self.reads_commands():
            legal = self.model.sender and not self.model.chunked and address != "bad" and (address.isascii() or self.model.utf8)
            assert (str(digit) if legal else "5") == self.say(f"RCPT TO:<{address}>\r\n", digit, "RCPT")
            self.model.named += self.model.sender
            if legal and digit == 2:
                self.model.accepted.append(address)

    @rule(refuse=st.booleans())
    def data(self, refuse: bool) -> None:
        """DATA needs a recipient."""
        if self.reads_commands():
            legal = bool(self.model.accepted) and not self.model.chunked
            self.driver.engine.tally.errors = 0
            self.driver.policy = Policy(answers={"DATA": ANSWERS[4]} if refuse else {})
            (code,) = codes(self.driver.feed(b"DATA\r\n"))
            assert code.startswith(
                ("450" if refuse else "354") if legal else "554" if self.model.named and not self.model.accepted else "503"
            )
            self.model.content = legal and not refuse

    @rule(digit=DIGITS, stray=st.booleans())
    def end(self, digit: int, stray: bool) -> None:
        """The end of a message ends the transaction, whatever became of it."""
        if self.model.content:
            expected = "5" if stray else str(digit)
            assert expected == self.say("text\n\r\n.\r\n" if stray else "text\r\n.\r\n", digit, ".")
            self.model.forget()

    @rule(digit=DIGITS, last=st.booleans(), size=st.sampled_from([0, 4, SIZE_MAX + 1]), refuse=st.sampled_from([False, False, True]))
    def chunk(self, digit: int, last: bool, size: int, refuse: bool) -> None:
        """BDAT needs a recipient too; after one that was refused the message is only waited for to end."""
        model = self.model
        if not self.reads_commands():
            return
        self.driver.engine.tally.errors = 0
        self.driver.policy = Policy(answers={"BDAT": ANSWERS[4]} if refuse else {".": ANSWERS[digit]})
        (code,) = codes(self.driver.feed(b"BDAT %d%s\r\n" % (size, b" LAST" * last) + b"x" * size))
        if not model.accepted:
            assert code.startswith("554" if model.named else "503")
        elif model.failed:
            assert code.startswith("503")
        else:
            too_big = size > SIZE_MAX - self.sent
            assert code.startswith("450" if refuse else "552" if too_big else str(digit) if last else "250")
            model.chunked, model.failed = True, refuse or too_big
            self.sent += size
        if model.accepted and last:
            model.forget()
        if not model.chunked:
            self.sent = 0

    @rule(digit=DIGITS)
    def rset(self, digit: int) -> None:
        """RSET ends the transaction, whatever its answer."""
        if self.reads_commands():
            assert str(digit) == self.say("RSET\r\n", digit, "RSET")
            self.model.forget()

    @rule(line=st.sampled_from(["NOOP", "VRFY x", "HELP", "EXPN x"]))
    def bystander(self, line: str) -> None:
        """Other commands change nothing."""
        if self.reads_commands():
            self.say(line + "\r\n", 2, "NOOP")

    @invariant()
    def counts_chunks_of_one_message(self) -> None:
        """Octets of chunks are counted within a message, and not beyond."""
        if not self.model.chunked:
            self.sent = 0

    @invariant()
    def remembers_what_the_model_does(self) -> None:
        """Nothing more and nothing less is remembered."""
        engine = self.driver.engine
        assert (self.model.sender, len(self.model.accepted), self.model.utf8) == (
            engine.in_transaction,
            engine.accepted_recipients,
            engine.smtputf8,
        )
        assert self.model.content == engine.in_content


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
