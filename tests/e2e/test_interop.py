"""Real clients, each with every feature of the protocol that it has: one table of rows, one test.

What a client has not, the table does not hold: no client here but Exim speaks BDAT (nor says it BODY=), and none but Postfix, Exim and
swaks pipelines.
``docs/interop.md`` is this table, for people; a test keeps it so.
"""

from __future__ import annotations

import base64
import hashlib
import random
import smtplib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from email.policy import SMTP as CRLF
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import clients
from tests.e2e.certificates import Authority
from tests.e2e.errands import ENVID, PASSWORD, USER, Client, Errand, Result, Road
from tests.e2e.exim import by_exim
from tests.e2e.harness import Postbus, running, tree, unique, wait_until
from tests.e2e.postfix import Postfix, folder_for_postfix, postfix
from tests.e2e.published import Lines
from tests.e2e.tee import Tee, tee
from tests.e2e.test_auth import passwd
from tests.e2e.webserver import serving

DOCUMENT = Path(__file__).parents[2] / "docs" / "interop.md"
ATTACHMENT_OCTETS = 5_000_000
SENDER = "sender@example.net"


@dataclass(frozen=True, slots=True)
class Feature:
    """What a row asks for: see ``Errand``. *wire*: what the client must have put on the wire, in one piece; *verdicts*: they differ."""

    title: str
    road: Road = "plain"
    auth: str = ""
    utf8: bool = False
    eight: bool = False
    dsn: bool = False
    large: bool = False
    chunks: bool = False
    pipelined: bool = False
    verdicts: bool = False


FEATURES = {
    "plain": Feature("plain text"),
    "starttls": Feature("STARTTLS", "starttls"),
    "implicit": Feature("implicit TLS", "implicit"),
    "auth-plain": Feature("AUTH PLAIN", "starttls", auth="PLAIN"),
    "auth-login": Feature("AUTH LOGIN", "starttls", auth="LOGIN"),
    "smtputf8": Feature("SMTPUTF8", utf8=True),
    "8bitmime": Feature("8BITMIME", eight=True),
    "dsn": Feature("DSN parameters", dsn=True),
    "pipelining": Feature("PIPELINING", pipelined=True),
    "chunking": Feature("CHUNKING", chunks=True),
    "chunking-8bit": Feature("CHUNKING over TLS, 8 bits", "starttls", eight=True),
    "chunking-large": Feature("CHUNKING, 5 MB attachment", large=True, chunks=True),
    "lmtp": Feature("LMTP, null sender, two recipients, two verdicts", "lmtp", verdicts=True),
    "large": Feature("5 MB attachment", large=True),
}

ENCRYPTED = ("starttls", "implicit", "auth-plain", "auth-login")
TABLE: Mapping[str, tuple[str, ...]] = {
    "smtplib": ("plain", *ENCRYPTED, "smtputf8", "8bitmime", "dsn", "lmtp", "large"),
    "aiosmtplib": ("plain", *ENCRYPTED, "smtputf8", "8bitmime", "dsn", "large"),
    "swaks": ("plain", *ENCRYPTED, "pipelining", "lmtp", "large"),
    "curl": ("plain", *ENCRYPTED, "smtputf8", "large"),
    "nodemailer": ("plain", *ENCRYPTED, "smtputf8", "8bitmime", "dsn", "lmtp", "large"),
    "Postfix smtp(8)": ("plain", *ENCRYPTED, "smtputf8", "8bitmime", "dsn", "pipelining", "large"),
    "Postfix lmtp(8)": ("smtputf8", "8bitmime", "dsn", "pipelining", "lmtp", "large"),
    "Exim": ("plain", *ENCRYPTED, "smtputf8", "dsn", "pipelining", "chunking", "chunking-8bit", "chunking-large", "lmtp", "large"),
}
"""Each client, and the features it has."""

RELAYS = ("Postfix smtp(8)", "Postfix lmtp(8)", "Exim")
"""These put a Received field before the message (RFC 5321 s4.4)."""

SERVICES = """\
secure unix - - n - - smtp -o smtp_tls_security_level=secure -o smtp_tls_secure_cert_match={name}
wrapped unix - - n - - smtp -o smtp_tls_security_level=secure -o smtp_tls_secure_cert_match={name} -o smtp_tls_wrappermode=yes
{logins}
"""
LOGIN = (
    "login{mechanism} unix - - n - - smtp -o smtp_tls_security_level=secure -o smtp_tls_secure_cert_match={name}"
    " -o smtp_sasl_auth_enable=yes -o smtp_sasl_password_maps=texthash:{folder}/passwords -o smtp_sasl_mechanism_filter={mechanism}"
    " -o smtp_sasl_security_options=noanonymous -o smtp_sasl_tls_security_options=noanonymous"
)


@dataclass
class Field:
    """Where the rows are played: postbus, a tee before its plain listeners, and what came out so far, by recipient."""

    postbus: Postbus
    tees: dict[str, Tee]
    ca: Path
    lines: Lines
    arrived: dict[str, dict[str, Any]] = field(default_factory=dict)

    def port(self, road: Road) -> int:
        """Return the port that leads to *road*."""
        listener = {"plain": "mx", "starttls": "mx", "implicit": "implicit", "lmtp": "lmtp"}[road]
        if road in self.tees:
            return int(self.tees[road].address.rpartition(":")[2])
        return self.postbus.port(listener)

    def event(self, recipient: str) -> dict[str, Any]:
        """Return the data of the one event for *recipient*, once it is there."""
        wait_until(lambda: recipient in self._look(), lambda: f"nothing for {recipient}\n{self.postbus.log.tail()}")
        return self.arrived[recipient]

    def _look(self) -> dict[str, dict[str, Any]]:
        for event in self.lines.take():
            recipient = event["data"]["envelope"]["recipient"]
            assert recipient not in self.arrived, f"two events for {recipient}"
            self.arrived[recipient] = event["data"]
        return self.arrived


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Field]:
    """Start postbus with a listener for each road."""
    folder = tmp_path_factory.mktemp("interop")
    pair = authority.issue("interop")
    passwd(folder / "users", USER, password=PASSWORD)
    said = {"announce": ["DSN"]}
    auth = {"users": str(folder / "users")}
    with ExitStack() as stack:
        web = stack.enter_context(serving())
        web.answers["/refuses"] = 413
        listeners = {
            "mx": {"address": "127.0.0.1:0", "tls": pair.tls("starttls"), "auth": auth, **said},
            "implicit": {"address": "127.0.0.1:0", "tls": pair.tls("implicit"), "auth": auth, **said},
            "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp", **said},
        }
        sinks = {"file": tree()["sinks"]["file"], "refuses": {"kind": "webhook", "url": f"{web.url}/refuses"}}
        routes = [
            {"name": "refuses", "match": "refuses-*@*", "sinks": "refuses", "acceptance": "hold"},
            {"name": "everyone", "match": "*", "sinks": "file", "mode": "raw"},
        ]
        postbus = stack.enter_context(running(folder / "postbus", tree(listeners=listeners, sinks=sinks, routes=routes)))
        tees = {road: stack.enter_context(tee(postbus.address(name))) for road, name in (("plain", "mx"), ("lmtp", "lmtp"))}
        yield Field(postbus, tees, authority.file, Lines(postbus.folder / "events.jsonl"))


@pytest.fixture(scope="module")
def relay(ground: Field) -> Iterator[Postfix]:
    """Start a Postfix that knows a transport for each row of its own."""
    transports = {"example.net": "discard:"}
    for client in RELAYS[:2]:
        for name in TABLE[client]:
            transports[_domain(client, name)] = f"{_transport(client, name)}:[127.0.0.1]:{ground.port(_road(client, name))}"
    with folder_for_postfix() as folder:
        (folder / "passwords").write_text(f"[127.0.0.1]:{ground.port('starttls')} {USER}:{PASSWORD}\n")
        name = "mx.postbus.test"
        logins = "\n".join(LOGIN.format(mechanism=mechanism, name=name, folder=folder) for mechanism in ("plain", "login"))
        services = SERVICES.format(name=name, logins=logins)
        with postfix(folder, transports, ca=ground.ca, services=services) as started:
            yield started


def _domain(client: str, feature: str) -> str:
    return f"{feature}.{'lmtp' if 'lmtp' in client else 'smtp'}.example.org"


def _transport(client: str, feature: str) -> str:
    if "lmtp" in client:
        return "lmtp:inet"
    special = {"starttls": "secure", "implicit": "wrapped", "auth-plain": "loginplain", "auth-login": "loginlogin"}
    return special.get(feature, "smtp")


def _road(client: str, feature: str) -> Road:
    return "lmtp" if "lmtp" in client else FEATURES[feature].road


def by_postfix(errand: Errand, *, relay: Postfix) -> Result:
    """Hand the errand to Postfix's own server, and wait until its queue is empty."""
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        unwanted = client.sendmail(
            errand.sender, errand.recipients, errand.octets, errand.mail_options, errand.rcpt_options(errand.recipients[0])
        )
    assert not unwanted
    told = relay.wait(list(errand.recipients))
    wait_until(lambda: not relay.queue, lambda: f"Postfix's queue holds {relay.queue}\n{relay.log[-4000:]}")
    refused = {name: said for name, (status, said) in told.items() if status != "sent"}
    return Result(frozenset(told) - set(refused), refused, relay.log[-4000:])


def _client(name: str, feature: str, request: pytest.FixtureRequest) -> Client:
    match name:
        case "Postfix smtp(8)" | "Postfix lmtp(8)":
            return partial(by_postfix, relay=request.getfixturevalue("relay"))
        case "Exim":  # which pipelines and sends chunks unless told not to
            return partial(by_exim, options="" if "chunking" in feature else "  hosts_try_chunking =\n")
        case "swaks" if feature == "pipelining":
            return clients.by_swaks_pipelining
    found: Client = getattr(clients, f"by_{name}")
    return found


def _message(feature: Feature) -> bytes:
    """Return a message with every header an MTA would add, with dots where lines begin, and of 8 bits where those are asked for."""
    message = EmailMessage(policy=CRLF.clone(utf8=feature.utf8))
    message["From"], message["To"] = SENDER, "undisclosed-recipients:;"
    message["Subject"] = "Grüße" if feature.utf8 else "interop"
    message["Date"], message["Message-ID"] = "Mon, 23 Nov 2026 07:00:00 +0000", f"<{unique('interop')}@example.net>"
    words = "Grüße, 漢字" if feature.eight or feature.utf8 else "words"
    message.set_content(f".\n..\n.begins with a dot\n{words}\n\n", cte="8bit" if feature.eight or feature.utf8 else "7bit")
    if feature.large:
        octets = random.Random(5).randbytes(ATTACHMENT_OCTETS)
        message.add_attachment(octets, maintype="application", subtype="octet-stream", filename="large.bin")
    return message.as_bytes()


@pytest.mark.parametrize(
    ("client", "feature"), [pytest.param(client, name, id=f"{client}-{name}") for client in TABLE for name in TABLE[client]]
)
def test_interop(ground: Field, request: pytest.FixtureRequest, tmp_path: Path, client: str, feature: str) -> None:
    """The octets are those sent, envelope and parameters are recorded, and the client knows what became of its mail."""
    asked = replace(FEATURES[feature], road=_road(client, feature))
    domain = _domain(client, feature)
    one, two = (f"{unique('jörg' if asked.utf8 else 'one')}@{domain}", f"{unique('refuses-' if asked.verdicts else 'two')}@{domain}")
    recipients = (one,) if asked.dsn else (one, two)  # one ORCPT for all, with clients that know no other
    already = len(ground.tees[asked.road].conversations) if asked.road in ground.tees else 0
    with folder_for_postfix() as folder:
        errand = Errand(
            *(asked.road, ground.port(asked.road), ground.ca, "" if asked.verdicts else SENDER, recipients, _message(asked), folder),
            auth=asked.auth,
            utf8=asked.utf8,
            eight=asked.eight,
            dsn=asked.dsn,
        )
        result = _client(client, feature, request)(errand)
    taken = {one} if asked.verdicts else set(recipients)
    assert taken == result.taken, result
    assert {two} - taken == set(result.refused) if asked.verdicts else not result.refused, result
    assert all("554 5.3.0" in words for words in result.refused.values()), result
    for recipient in taken:
        _check_event(ground.event(recipient), asked, errand, client)
    if asked.road in ground.tees:
        _check_wire([talk.turns for talk in ground.tees[asked.road].conversations[already:]], asked, feature)


def _check_event(data: dict[str, Any], asked: Feature, errand: Errand, client: str) -> None:
    raw = base64.b64decode(data["raw"]["base64"])
    assert hashlib.sha256(raw).hexdigest() == data["message"]["sha256"]
    trace = raw.removesuffix(errand.octets) if client in RELAYS else b""
    assert hashlib.sha256(trace + errand.octets).hexdigest() == data["message"]["sha256"], raw[:2000]
    assert (client in RELAYS) == trace.startswith(b"Received: ")
    assert len(raw) == data["message"]["sizeBytes"]
    envelope, params = data["envelope"], data["envelope"]["params"]
    assert errand.sender == envelope["mailFrom"]
    assert 1 + (not asked.dsn) == envelope["count"]
    assert asked.utf8 == params["smtputf8"]
    assert not asked.eight or ("7BIT" if client == "Exim" else "8BITMIME") == params["body"]  # Exim never says BODY=
    assert params["size"] is None or params["size"] >= len(errand.octets)
    told = ("HDRS", ENVID, {"SUCCESS", "FAILURE"}) if asked.dsn else (None, None, set())
    assert told == (params["ret"], params["envid"], set(params["notify"]))
    original = params["orcpt"]
    if asked.dsn or original is not None:  # relays add it where it is missing (RFC 3461 s5.2.1)
        assert asked.dsn or client in RELAYS
        assert f"rfc822;{envelope['recipient']}" == original or (asked.utf8 and original.startswith(("rfc822;", "utf-8;")))
    listener = data["listener"]
    secure = asked.road in {"starttls", "implicit"}
    assert ("lmtp" if asked.road == "lmtp" else "esmtp") + "s" * secure + "a" * bool(asked.auth) == listener["protocol"]
    assert not secure or "TLSv1.3" == listener["tls"]["version"]
    assert ({"mechanism": asked.auth, "identity": USER} if asked.auth else None) == listener["auth"]


def _check_wire(talks: list[list[Any]], asked: Feature, feature: str) -> None:
    """Look at what the client put on the wire, piece by piece: a word for what it was asked to do."""
    pieces = [octets for turns in talks for who, octets in turns if who == "client"]
    assert pieces
    together = any(b"MAIL FROM:" in piece and b"RCPT TO:" in piece for piece in pieces)
    assert together or not asked.pipelined
    assert asked.chunks == any(b"BDAT " in piece for piece in pieces)


def document() -> str:
    """Return docs/interop.md."""
    lines = [
        "# Who talks to postbus",
        "",
        "Each mark is a test with the real client (`tests/e2e/test_interop.py`): the octets that arrived are those sent, the envelope and",
        "all parameters are in the event, and the client knows what became of its mail. No mark: the client does not have the feature.",
        "",
        "| | " + " | ".join(TABLE) + " |",
        "|---|" + "---|" * len(TABLE),
    ]
    for name, feature in FEATURES.items():
        lines.append(f"| {feature.title} | " + " | ".join("x" if name in names else " " for names in TABLE.values()) + " |")
    return "\n".join(lines) + "\n"


def test_the_page_is_the_table() -> None:
    """docs/interop.md says what is tested; ``python -m tests.e2e.test_interop`` writes it."""
    assert document() == DOCUMENT.read_text("utf-8")


if __name__ == "__main__":
    DOCUMENT.write_text(document(), "utf-8")
