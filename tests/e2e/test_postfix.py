"""A real Postfix relays to postbus, over SMTP (pipelining, STARTTLS, SMTPUTF8) and LMTP (TCP, Unix socket), through a tee each."""

from __future__ import annotations

import asyncio
import base64
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

import pytest

from tests.brokers import Kafka
from tests.e2e.certificates import Authority
from tests.e2e.harness import Postbus, running, tree, unique, wait_until
from tests.e2e.mails import corpus
from tests.e2e.postfix import Postfix, folder_for_postfix, need_postfix, postfix
from tests.e2e.tee import Tee, tee
from tests.e2e.webserver import WebServer, serving

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

ROADS = {"smtp": "esmtp", "tls": "esmtps", "lmtp": "lmtp", "socket": "lmtp"}
"""Ways from Postfix to postbus, each a domain ``<way>.example.org``, with the protocol its events tell."""


@dataclass(repr=False)
class Relay:
    """Postfix, the tees and postbus, whose events go to a file and to a topic."""

    postfix: Postfix
    postbus: Postbus
    tees: dict[str, Tee]
    web: WebServer
    kafka: Kafka
    topic: str

    def event(self, recipient: str) -> dict[str, Any]:
        """Return the data of the one event for *recipient*."""
        self.postbus.wait_delivered()
        found = [event["data"] for event in self.postbus.events() if event["data"]["envelope"]["recipient"] == recipient]
        assert 1 == len(found), f"{len(found)} events for {recipient}\n{self.postbus.log.tail()}"
        data: dict[str, Any] = found[0]
        return data

    def check_octets(self, road: str, recipients: list[str]) -> None:
        """Assert that each recipient's event holds what Postfix put on the wire for him."""
        sent = {recipient: message for message in self.tees[road].messages for recipient in message.recipients}
        for recipient in recipients:
            data = self.event(recipient)
            assert sent[recipient].octets == base64.b64decode(data["raw"]["base64"]), recipient
            assert sent[recipient].sha256 == data["message"]["sha256"] == data["raw"]["sha256"], recipient
            assert ROADS[road] == data["listener"]["protocol"]
            assert "relay.postfix.test" == data["client"]["helo"]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, authority: Authority, kafka_of_the_run: Kafka) -> Iterator[Relay]:
    """Start postbus, a tee before each of its listeners, and a Postfix that knows the tees."""
    need_postfix()
    kafka_of_the_run.start()
    topic = asyncio.run(kafka_of_the_run.create_topic())
    pair = authority.issue("postfix")
    server, client = authority.server(pair), authority.client()
    with ExitStack() as stack:
        folder = stack.enter_context(folder_for_postfix())
        web = stack.enter_context(serving())
        listeners = {
            "smtp": {"address": "127.0.0.1:0"},
            "tls": {"address": "127.0.0.1:0", "tls": pair.tls("require")},
            "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp"},
            "socket": {"address": f"unix:{folder}/postbus.sock", "protocol": "lmtp"},
        }
        hooks = {name: {"kind": "webhook", "url": f"{web.url}/{name}"} for name in ("takes", "refuses", "fails")}
        routes: list[dict[str, Any]] = [{"name": name, "match": f"{name}-*@*", "sinks": name, "acceptance": "hold"} for name in hooks]
        known = [*(f"*@{road}.example.org" for road in ROADS), "*@bücher.example.org"]
        routes.append({"name": "everyone", "match": known, "sinks": ["file", "records"], "mode": "both"})
        web.answers |= {"/refuses": 413, "/fails": 500}
        records = {"kind": "kafka", "bootstrap": [kafka_of_the_run.bootstrap], "topic": topic}
        sinks = {"file": tree()["sinks"]["file"], "records": records, **hooks}
        config = tree(listeners=listeners, sinks=sinks, routes=routes)
        postbus = stack.enter_context(running(tmp_path_factory.mktemp("postfix"), config))
        tees = {
            "smtp": stack.enter_context(tee(postbus.address("smtp"))),
            "tls": stack.enter_context(tee(postbus.address("tls"), server_tls=server, client_tls=client)),
            "lmtp": stack.enter_context(tee(postbus.address("lmtp"))),
            "socket": stack.enter_context(tee(postbus.address("socket"), path=folder / "tee.sock")),
        }
        (folder / "tee.sock").chmod(0o666)
        transports = {
            "smtp.example.org": f"smtp:[127.0.0.1]:{_port(tees['smtp'])}",
            "unknown.example.org": f"smtp:[127.0.0.1]:{_port(tees['smtp'])}",
            "bücher.example.org": f"smtp:[127.0.0.1]:{_port(tees['smtp'])}",
            "tls.example.org": f"tlssmtp:[127.0.0.1]:{_port(tees['tls'])}",
            "lmtp.example.org": f"lmtp:inet:127.0.0.1:{_port(tees['lmtp'])}",
            "socket.example.org": f"lmtp:unix:{folder}/tee.sock",
        }
        yield Relay(stack.enter_context(postfix(folder, transports, ca=authority.file)), postbus, tees, web, kafka_of_the_run, topic)


def _port(one: Tee) -> str:
    return one.address.rpartition(":")[2]


def _mail(subject: str) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.net", "undisclosed-recipients:;", subject
    message.set_content("Dots:\n.\n..\n.leading\nand words: Grüße\n", cte="8bit")
    message.add_attachment(b"\0\1\2" * 1000, maintype="application", subtype="octet-stream", filename="data.bin")
    return message.as_bytes()


@pytest.mark.parametrize("road", ROADS)
def test_what_postfix_sends_is_what_the_events_hold(relay: Relay, road: str) -> None:
    """Mails by sendmail and by Postfix's smtpd, one of them to three recipients: octets equal the wire's, one event for each recipient."""
    people = [f"{unique(road)}@{road}.example.org" for _ in range(5)]
    relay.postfix.sendmail("local@example.net", [people[0]], _mail("by sendmail"))
    with smtplib.SMTP("127.0.0.1", relay.postfix.port, timeout=30) as client:
        client.sendmail("remote@example.net", people[1:4], _mail("to three"), ["BODY=8BITMIME"])
        client.sendmail("", [people[4]], _mail("null sender"), ["BODY=8BITMIME"])
    said = relay.postfix.wait(people)
    assert {"sent"} == {status for status, _ in said.values()}, said
    relay.check_octets(road, people)
    three = [relay.event(person) for person in people[1:4]]
    assert 1 == len({data["transactionId"] for data in three})
    assert {3} == {data["envelope"]["count"] for data in three}
    assert [""] == [relay.event(people[4])["envelope"]["mailFrom"]]
    for person in people:  # the transaction's id is in the reply, so that both logs can be joined
        assert relay.event(person)["transactionId"] in said[person][1]


def test_the_corpus_by_way_of_postfix(relay: Relay) -> None:
    """Whatever Postfix makes of the interpreter's corpus, the events hold the same."""
    people = []
    with smtplib.SMTP("127.0.0.1", relay.postfix.port, timeout=30) as client:
        for mail in corpus():
            if mail.code == 250:
                people.append(f"{unique('corpus')}@smtp.example.org")
                client.sendmail("corpus@example.net", [people[-1]], mail.octets, ["BODY=8BITMIME"])
    said = relay.postfix.wait(people, 60)
    assert {"sent"} == {status for status, _ in said.values()}, said
    relay.check_octets("smtp", people)
    assert len(people) > 40


def test_postfix_pipelines(relay: Relay) -> None:
    """Postfix takes our PIPELINING at its word: MAIL, RCPT and DATA come in one segment."""
    recipient = f"{unique('pipe')}@smtp.example.org"
    relay.postfix.sendmail("a@example.net", [recipient], _mail("pipelined"))
    relay.postfix.wait([recipient])
    turns = [octets for talk in relay.tees["smtp"].conversations for who, octets in talk.turns if who == "client"]
    assert any(b"MAIL FROM:" in turn and recipient.encode() in turn and turn.endswith(b"DATA\r\n") for turn in turns)


def test_starttls_is_spoken(relay: Relay) -> None:
    """Postfix upgraded, verified our certificate, and the event tells the version."""
    recipient = f"{unique('tls')}@tls.example.org"
    relay.postfix.sendmail("a@example.net", [recipient], _mail("secret"))
    relay.postfix.wait([recipient])
    assert all(talk.tls for talk in relay.tees["tls"].conversations)
    assert "Verified TLS connection established to 127.0.0.1" in relay.postfix.log
    assert "TLSv1.3" == relay.event(recipient)["listener"]["tls"]["version"]


def test_addresses_that_are_not_ascii(relay: Relay) -> None:
    """SMTPUTF8 from end to end: local part and domain as written, the domain in A-labels where normalised."""
    recipient, other = f"jörg{unique()}@smtp.example.org", f"{unique('x')}@bücher.example.org"
    with smtplib.SMTP("127.0.0.1", relay.postfix.port, timeout=30) as client:
        client.command_encoding = "utf-8"
        client.ehlo()
        text = "From: jörg@example.net\r\nSubject: Grüße\r\n\r\nbody\r\n"
        client.sendmail("jörg@example.net", [recipient, other], text.encode(), ["SMTPUTF8", "BODY=8BITMIME"])
    said = relay.postfix.wait([recipient, other])
    assert {"sent"} == {status for status, _ in said.values()}, said
    data = relay.event(recipient)
    assert ("jörg@example.net", True) == (data["envelope"]["mailFrom"], data["envelope"]["params"]["smtputf8"])
    assert "Grüße" == data["message"]["subject"]
    normalized = {event["data"]["envelope"]["recipientNormalized"] for event in relay.postbus.events()}
    assert other.replace("bücher", "xn--bcher-kva") in normalized


def test_over_lmtp_each_recipient_has_his_own_verdict(relay: Relay) -> None:
    """One transaction, four fates: taken, refused for good and deferred after the dot, unknown at RCPT. Postfix's DSN is the next event."""
    names = ("takes", "refuses", "fails")
    people = {name: f"{name}-{unique()}@lmtp.example.org" for name in names}
    sender = f"{unique('sender')}@smtp.example.org"
    relay.postfix.sendmail(sender, list(people.values()), _mail("verdicts"))
    said = relay.postfix.wait(list(people.values()))
    fates = {name: said[person][0] for name, person in people.items()}
    assert {"takes": "sent", "refuses": "bounced", "fails": "deferred"} == fates, said
    assert "554 5.3.0" in said[people["refuses"]][1]
    assert "451 4.3.0" in said[people["fails"]][1]
    [message] = [message for message in relay.tees["lmtp"].messages if people["takes"] in message.recipients]
    assert set(people.values()) == set(message.recipients)
    posted = [post for post in relay.web.posts if post.path == "/takes" and people["takes"].encode() in post.body]
    assert 1 == len(posted)
    assert all(people[name].encode() not in posted[0].body for name in ("refuses", "fails"))
    wait_until(lambda: any(event["data"]["envelope"]["recipient"] == sender for event in relay.postbus.events()), "no DSN came")
    bounce = relay.event(sender)
    assert ("", True) == (bounce["envelope"]["mailFrom"], bounce["message"]["isBounce"])


def test_an_unknown_recipient_is_bounced_by_postfix_and_the_others_get_theirs(relay: Relay) -> None:
    """550 5.1.1 at RCPT, in the midst of a pipelined transaction, costs only him."""
    known, unknown = f"{unique('known')}@smtp.example.org", f"{unique('nobody')}@unknown.example.org"
    relay.postfix.sendmail("", [unknown, known], _mail("one of two"))
    said = relay.postfix.wait([known, unknown])
    assert ("sent", "bounced") == (said[known][0], said[unknown][0])
    assert "550 5.1.1" in said[unknown][1]
    [message] = [message for message in relay.tees["smtp"].messages if known in message.recipients]
    assert {known, unknown} == set(message.recipients)
    relay.check_octets("smtp", [known])


def test_the_topic_holds_an_event_for_each_accepted_recipient(relay: Relay) -> None:
    """Whatever came before, and one mail more: the ids on the topic are those in the file, each once."""
    people = [f"{unique('topic')}@{road}.example.org" for road in ROADS for _ in range(3)]
    relay.postfix.sendmail("a@example.net", people, _mail("to the topic"))
    said = relay.postfix.wait(people)
    assert {"sent"} == {status for status, _ in said.values()}, said
    relay.postbus.wait_delivered()
    events = relay.postbus.events()
    records = asyncio.run(relay.kafka.consume(relay.topic, at_least=len(events)))
    assert sorted(event["id"] for event in events) == sorted((record.header("ce_id") or b"").decode() for record in records)
    assert set(people) <= {event["data"]["envelope"]["recipient"] for event in events}
