"""Mail to a real HTTP server: structured CloudEvents whose signature the Standard Webhooks library verifies."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import jsonschema
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook, WebhookVerificationError

from postbus.event.model import json_schema
from tests.e2e.conftest import Start
from tests.e2e.harness import deliver, tree, wait_until
from tests.e2e.webserver import WebServer, serving

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OLDER = "whsec_" + base64.b64encode(b"o" * 32).decode()
MAIL = b"From: a@example.net\r\nSubject: hook\r\n\r\nbody\r\n..dots\r\n"


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server."""
    with serving() as server:
        yield server


def hook(web: WebServer, path: str = "/in", **more: object) -> dict[str, object]:
    """Return a webhook sink that signs with both secrets."""
    return {"kind": "webhook", "url": web.url + path, "signing_secrets": [{"env": "NEWER"}, {"env": "OLDER"}], **more}


@pytest.mark.parametrize("mode", ["parsed", "raw", "both"])
@pytest.mark.parametrize("acceptance", ["spool", "hold"])
def test_signed_events(start: Start, web: WebServer, mode: str, acceptance: str) -> None:
    """Two recipients, two posts, each signed with each secret, with the mail's octets where the mode promises them."""
    routes = [{"name": "all", "match": "*", "sinks": "hook", "mode": mode, "acceptance": acceptance}]
    postbus = start(tree(sinks={"hook": hook(web)}, routes=routes), environment={"NEWER": SECRET, "OLDER": OLDER})
    with postbus.smtp() as client:
        verdicts = deliver(client, ["one@example.org", "two@example.org"], MAIL)
    assert [250, 250] == [verdict.code for verdict in verdicts]
    wait_until(lambda: len(web.posts) >= 2, lambda: f"{len(web.posts)} posts\n{postbus.log.tail()}")
    recipients = set()
    for post in web.posts:
        for secret in (SECRET, OLDER):
            Webhook(secret).verify(post.body, post.headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(post.body.replace(b"hook", b"hack") + b" ", post.headers)
        event = from_structured_event(HTTPMessage(post.headers, post.body), JSONFormat())
        assert post.headers["webhook-id"] == event.get_id()
        data = json.loads(post.body)["data"]
        jsonschema.Draft202012Validator(json_schema()).validate(data)
        recipients.add(data["envelope"]["recipient"])
        assert mode == data["mode"]
        assert mode in {"raw", "both"} or data["raw"] is None
        assert mode == "parsed" or MAIL == base64.b64decode(data["raw"]["base64"])
    assert {"one@example.org", "two@example.org"} == recipients
    assert 2 == len(web.posts)


def test_hold_answers_what_the_receiver_says_and_recovers(start: Start, web: WebServer) -> None:
    """While the receiver is away or ill the sender gets 451 and keeps the mail; when it is back, the next mail is taken."""
    routes = [{"name": "all", "match": "*", "sinks": "hook", "acceptance": "hold"}]
    postbus = start(tree(sinks={"hook": hook(web)}, routes=routes), environment={"NEWER": SECRET, "OLDER": OLDER})

    def answer() -> int:
        with postbus.smtp() as client:
            return deliver(client, ["one@example.org"], MAIL)[0].code

    assert 250 == answer()
    web.answers["/in"] = 503
    assert 451 == answer()
    assert 451 == answer()
    assert "[~]sink.hook degraded" in postbus.get("/readyz?verbose").text
    assert 200 == postbus.get("/readyz").code
    web.answers.clear()
    wait_until(lambda: answer() == 250, lambda: f"the sink is not used again\n{postbus.log.tail()}", 30)
    assert "[+]sink.hook" in postbus.get("/readyz?verbose").text
    web.answers["/in"] = 413
    assert 554 == answer()
    web.answers["/in"] = 400
    assert 451 == answer()
    web.answers.clear()
    assert 250 == answer()
