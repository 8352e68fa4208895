"""A program in JavaScript consumes what postbus sends: Standard Webhooks checks, the CloudEvents SDK parses, Ajv validates.

The oracle of what was written is a file sink of the same routes: one line for each event, under the same id.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from postbus.event import mime
from postbus.event.mail import Mode
from postbus.event.model import RAW_TYPE, render
from postbus.event.parsed import Defect, unreadable
from tests.brokers import Kafka, Record
from tests.consumers.javascript import HERE, LOCK, Javascript, installed
from tests.e2e.harness import POSTBUS, Postbus, deliver, running, tree
from tests.e2e.mails import Mail, generated
from tests.e2e.webserver import Post, serving
from tests.event import samples

MODES: tuple[Mode, ...] = ("parsed", "raw", "both")
NEWER = "whsec_" + base64.b64encode(b"n" * 32).decode()
OLDER = "whsec_" + base64.b64encode(b"o" * 32).decode()
STRANGE = "whsec_" + base64.b64encode(b"s" * 32).decode()
MAIL_MAX_OCTETS = 100_000
DOCUMENT = HERE.parent.parent / "docs" / "events.md"


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Javascript]:
    """The program, with the schema as the command line prints it."""
    node = installed()
    schema = tmp_path_factory.mktemp("schema") / "event.schema.json"
    with schema.open("wb") as file:
        subprocess.run([POSTBUS, "schema", "event"], stdout=file, check=True, timeout=60)
    with Javascript(node, schema) as program:
        yield program


# --- what postbus writes


def mails() -> list[Mail]:
    """Return small mails of every kind that are accepted: charsets, 8-bit headers, attachments, emptiness."""
    return [mail for mail in generated() if len(mail.octets) < MAIL_MAX_OCTETS and mail.code == 250]


def routes(*sinks: str) -> list[dict[str, object]]:
    """Return a route for each mode; each leads to *sinks*."""
    return [{"name": mode, "match": f"*@{mode}.example.org", "mode": mode, "sinks": sinks} for mode in MODES]


def send(postbus: Postbus) -> int:
    """Send every mail to every route and return how many events that makes. Whoever holds has them when this returns."""
    recipients = [f"you@{mode}.example.org" for mode in MODES]
    with postbus.smtp() as client:  # one at a time: their routes could not share the one reply
        verdicts = [deliver(client, [you], mail.octets, options=mail.options)[0] for mail in mails() for you in recipients]
    assert [] == [verdict for verdict in verdicts if verdict.code != 250]
    return len(verdicts)


def attributes(event: dict[str, Any]) -> dict[str, Any]:
    """Return what a structured event says beside its data."""
    return {name: value for name, value in event.items() if name != "data"}


@dataclass(frozen=True, repr=False)
class Hooked:
    """What a file sink and two webhooks were given: *events* by id, *posts* by CloudEvents mode."""

    events: dict[str, dict[str, Any]]
    posts: dict[str, list[Post]]


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Hooked:
    """Requests of a real webhook sink that signs with two secrets, in both modes."""
    with serving() as web:
        signing = [{"env": "NEWER"}, {"env": "OLDER"}]
        hooks = {
            mode: {"kind": "webhook", "url": f"{web.url}/{mode}", "mode": mode, "signing_secrets": signing}
            for mode in ("structured", "binary")
        }
        config = tree(sinks={**tree()["sinks"], **hooks}, routes=routes("file", *hooks), acceptance="hold")
        with running(tmp_path_factory.mktemp("hooked"), config, environment={"NEWER": NEWER, "OLDER": OLDER}) as postbus:
            count = send(postbus)
            events = {event["id"]: event for event in postbus.wait_events(count)}
        posts = {mode: [post for post in web.posts if post.path == f"/{mode}"] for mode in hooks}
    assert [count] * 3 == [len(events), *map(len, posts.values())]
    return Hooked(events, posts)


@dataclass(frozen=True, repr=False)
class Recorded:
    """What a file sink and two Kafka sinks were given: *events* by id, *records* by CloudEvents mode."""

    events: dict[str, dict[str, Any]]
    records: dict[str, list[Record]]


@pytest.fixture(scope="module")
def recorded(kafka_of_the_run: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Records of a real broker, in both modes."""
    kafka_of_the_run.start()
    topics = {mode: asyncio.run(kafka_of_the_run.create_topic()) for mode in ("structured", "binary")}
    sinks = {
        mode: {"kind": "kafka", "bootstrap": [kafka_of_the_run.bootstrap], "topic": topic, "mode": mode} for mode, topic in topics.items()
    }
    config = tree(sinks={**tree()["sinks"], **sinks}, routes=routes("file", *sinks), acceptance="hold")
    with running(tmp_path_factory.mktemp("recorded"), config) as postbus:
        count = send(postbus)
        events = {event["id"]: event for event in postbus.wait_events(count)}
    records = {mode: asyncio.run(kafka_of_the_run.consume(topic, at_least=count)) for mode, topic in topics.items()}
    assert [count] * 3 == [len(events), *map(len, records.values())]
    return Recorded(events, records)


# --- webhooks


def webhook(post: Post, secret: str, **changes: object) -> dict[str, object]:
    """Return the question what *post* says to somebody who holds *secret*."""
    return {"ask": "webhook", "headers": post.headers, "body": base64.b64encode(post.body).decode(), "secret": secret, **changes}


@pytest.mark.parametrize("secret", [pytest.param(NEWER, id="newer"), pytest.param(OLDER, id="older")])
@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_webhooks_are_verified_and_read(javascript: Javascript, hooked: Hooked, mode: str, secret: str) -> None:
    """By whoever holds one of the secrets, the new one or the old one: attributes, data, and the schema holds."""
    answers = [javascript.ask(webhook(post, secret)) for post in hooked.posts[mode]]
    assert [] == [answer["refused"] for answer in answers if "refused" in answer]
    for answer in answers:
        written = hooked.events[answer["attributes"]["id"]]
        assert attributes(written) == answer["attributes"]
        assert written["data"] == answer["data"]
        assert answer["valid"], answer["errors"]
    assert len(hooked.events) == len({answer["attributes"]["id"] for answer in answers})


FIVE_MINUTES_S = 300

REFUSED = [
    pytest.param({"secret": STRANGE}, "No matching signature", id="strange secret"),
    pytest.param({"body": b"changed"}, "No matching signature", id="altered body"),
    pytest.param({"header": ("webhook-id", "018cc251-f400-7000-8000-00000000000a")}, "No matching signature", id="another id"),
    pytest.param({"header": ("webhook-signature", "")}, "Missing required headers", id="unsigned"),
    pytest.param({"header": ("webhook-timestamp", "1700000000")}, "timestamp too old", id="altered time"),
    pytest.param({"later_s": FIVE_MINUTES_S + 60}, "timestamp too old", id="stale"),
    pytest.param({"later_s": -FIVE_MINUTES_S - 60}, "timestamp too new", id="from the future"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_what_was_tampered_with_is_refused(javascript: Javascript, hooked: Hooked, mode: str, change: dict[str, Any], words: str) -> None:
    """Before anybody parses it."""
    post = hooked.posts[mode][0]
    question = webhook(post, change.get("secret", NEWER), later_s=change.get("later_s", 0))
    if "body" in change:
        question["body"] = base64.b64encode(post.body.replace(b"generated", change["body"]) + b" ").decode()
    if "header" in change:
        question["headers"] = {**post.headers, **dict([change["header"]])}
    refused = javascript.ask(question)["refused"]
    assert refused.startswith("WebhookVerificationError: ")
    assert words in refused


def test_a_request_may_take_a_while(javascript: Javascript, hooked: Hooked) -> None:
    """Clocks that differ by four minutes do no harm."""
    post = hooked.posts["structured"][0]
    assert [True, True] == [javascript.ask(webhook(post, NEWER, later_s=later_s))["valid"] for later_s in (-240, 240)]


# --- Kafka


def kafka_record(record: Record) -> dict[str, object]:
    """Return the question what *record* says."""

    def text(octets: bytes | None) -> str:
        assert octets is not None, "a null is a tombstone"
        return base64.b64encode(octets).decode()

    headers = [(name, text(value)) for name, value in record.headers]
    return {"ask": "kafka", "key": text(record.key), "value": text(record.value), "headers": headers}


@pytest.mark.kafka
@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_records_are_read(javascript: Javascript, recorded: Recorded, mode: str) -> None:
    """Attributes and data are those written; raw mail in the binary mode is its octets, with the facts beside it."""
    answers = [javascript.ask(kafka_record(record)) for record in recorded.records[mode]]
    assert [] == [answer["refused"] for answer in answers if "refused" in answer]
    assert recorded.events.keys() == {answer["attributes"]["id"] for answer in answers}
    for answer in answers:
        written = recorded.events[answer["attributes"]["id"]]
        if mode == "binary" and written["subject"] == "raw":
            check_octets(written, answer)
        else:
            assert attributes(written) == answer["attributes"]
            assert written["data"] == answer["data"] == answer["facts"]
            assert answer["valid"], answer["errors"]


def check_octets(written: dict[str, Any], answer: dict[str, Any]) -> None:
    """A raw event says of itself what its JSON form says, and its data is the mail, octet by octet."""
    data = written["data"]
    media_type = "message/global" if data["envelope"]["params"]["smtputf8"] else "message/rfc822"
    own = {"type": RAW_TYPE, "datacontenttype": media_type}
    assert {**attributes(written), **own, "dataschema": None} == {"dataschema": None, **answer["attributes"]}
    assert data["raw"]["base64"] == answer["octets"]
    beside = answer["facts"]
    assert {name: data["message"][name] for name in ("sizeBytes", "sha256")} == beside.pop("message")
    assert {name: data[name] for name in beside} == beside
    assert {"envelope", "route", "client", "defects"} <= beside.keys()


# --- the schema

DEFECTIVE = {
    "nothing": b"",
    "eight-bit-header": b"Subject: Gr\xfc\xdfe\r\nX-Any: \xff\xfe\r\n\r\n\xff\r\n",
    "unknown-charset": b"Content-Type: text/plain; charset=klingon\r\n\r\n\xe4\r\n",
    "broken-base64": samples.multipart(b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!x=y"),
    "no-end": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nno end",
    "deep": samples.nested(60),
    "too-deep": samples.nested(1001),
    "folded-words": "Subject: =?utf-8?q?caf=C3=A9?=\r\n =?x-none?b?4pi6?=\r\nFrom: \u202eא <a@b>\r\n\r\n☃\r\n".encode(),
}


def datas() -> dict[str, bytes]:
    """Return the data of events of every kind: the interpreter's corpus, generated and defective mails, in every mode, and unparsed."""
    octets = {path.name: samples.wire(path.read_bytes()) for path in samples.corpus()}
    octets |= {mail.name: mail.octets for mail in mails()} | DEFECTIVE
    found = {}
    for name, message in octets.items():
        parsed = mime.parse(message)
        for mode in MODES:
            to = samples.recipient(mode=mode)
            found[f"{name}, {mode}"] = render(samples.mail(message, to), to, message, parsed, as_octets=False).data
    to, ended = samples.recipient(), unreadable(Defect("parser.died", None, "SIGSEGV"))
    found["unreadable"] = render(samples.mail(samples.PLAIN, to), to, samples.PLAIN, ended, as_octets=False).data
    return found


def question_of(data: bytes) -> dict[str, str]:
    """Return the question whether *data* fits the schema."""
    return {"ask": "data", "data": base64.b64encode(data).decode()}


def test_a_second_implementation_finds_every_event_in_the_schema(javascript: Javascript) -> None:
    """And reads in it what was written; among them are events with defects of many kinds, attachments, and other scripts."""
    found = datas()
    answers = {name: javascript.ask(question_of(data)) for name, data in found.items()}
    assert {} == {name: answer["errors"] for name, answer in answers.items() if not answer["valid"]}
    read = {name: answer["data"] for name, answer in answers.items()}
    assert [] == [name for name, data in found.items() if json.loads(data) != read[name]]
    assert len({defect["code"] for data in read.values() for defect in data["defects"]}) >= 8
    assert any(data["attachments"] for data in read.values())
    assert any(not header["value"].isascii() for data in read.values() for header in data["headers"] or ())


BROKEN: list[Any] = [
    pytest.param(lambda data: data.pop("mode"), " must have required property 'mode'", id="a field is missing"),
    pytest.param(lambda data: data.update(surprise=1), " must NOT have additional properties", id="a field too many"),
    pytest.param(lambda data: data.update(mode="cooked"), "/mode must be equal to one of the allowed values", id="not of the list"),
    pytest.param(lambda data: data["message"].update(sha256="A" * 64), "/message/sha256 must match pattern", id="hash"),
    pytest.param(lambda data: data["message"].update(sizeBytes=-1), "/message/sizeBytes must be >= 0", id="negative"),
    pytest.param(lambda data: data["client"].update(port="25"), "/client/port must be integer", id="text for number"),
    pytest.param(lambda data: data["headers"][0].pop("value"), "/headers/0 must have required property 'value'", id="inside a list"),
    pytest.param(lambda data: data.update(attachments=[{}]), "/attachments/0 must have required property", id="empty attachment"),
    pytest.param(lambda data: data["route"]["captures"].update(x=None), "/route/captures/x must be string", id="inside a map"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN)
def test_what_does_not_fit_the_schema_is_found(javascript: Javascript, damage: Callable[[dict[str, Any]], object], words: str) -> None:
    """The schema says enough that a second implementation refuses what we would never send."""
    to = samples.recipient()
    whole = json.loads(render(samples.mail(samples.PLAIN, to), to, b"", mime.parse(samples.PLAIN), as_octets=False).data)
    damaged = copy.deepcopy(whole)
    damage(damaged)
    good, bad = (javascript.ask(question_of(json.dumps(data).encode())) for data in (whole, damaged))
    assert (True, False) == (good["valid"], bad["valid"])
    assert [error for error in bad["errors"] if error.startswith(words)], bad["errors"]


# --- what is written down


def test_the_lock_names_no_registry() -> None:
    """Every package by version and hash; where it comes from is the business of whoever installs."""
    packages = {name: package for name, package in json.loads(LOCK.read_text("utf-8"))["packages"].items() if name}
    assert [] == [name for name, package in packages.items() if "resolved" in package]
    assert [] == [name for name, package in packages.items() if not package["integrity"].startswith("sha512-")]
    assert "registry" not in LOCK.read_text("utf-8")


def test_the_documented_example_is_the_tested_one() -> None:
    """docs/events.md shows the marked part of consumer.js, letter by letter."""
    found = re.search(r"^// \[example\n(.*)^// example\]$", (HERE / "consumer.js").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    assert f"```js\n{found[1]}```\n" in DOCUMENT.read_text("utf-8")
