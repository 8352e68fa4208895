"""The command line against a running postbus: what an operator types, what he reads, the exit code a script sees."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import POSTBUS, Postbus, deliver, tree, wait_until
from tests.e2e.webserver import WebServer, serving

TOKEN = "a-token-for-tests"


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server."""
    with serving() as server:
        yield server


def postbus_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([POSTBUS, *arguments], capture_output=True, text=True, timeout=30, check=False, env={"PATH": "/usr/bin:/bin"})


def test_send_says_what_became_of_the_mail(start: Start, tmp_path: Path) -> None:
    """Text, HTML and a file arrive; each recipient's answer is told; the transaction's id leads to the event."""
    listeners = {"mx": {"address": "127.0.0.1:0"}, "lmtp": {"address": "unix:{folder}/lmtp.sock", "protocol": "lmtp"}}
    postbus = start(tree(listeners=listeners, routes=[{"name": "all", "match": "*@example.org", "sinks": "file"}]))
    file = tmp_path / "report.pdf"
    file.write_bytes(b"%PDF-1.4\r\n\0\xff")
    where = ["--host", "127.0.0.1", "--port", str(postbus.port())]
    what = ["--subject", "Größe", "--text", "plain words", "--html", "<p>rich words</p>", "--attach", str(file)]
    done = postbus_command("send", "one@example.org", "two@example.net", *where, *what)
    assert 1 == done.returncode, done.stdout + done.stderr
    assert re.search(r"one@example\.org +accepted +250 2\.0\.0", done.stdout), done.stdout
    assert re.search(r"two@example\.net +refused +550 5\.1\.1", done.stdout), done.stdout
    data = postbus.wait_events(1)[0]["data"]
    assert data["transactionId"] in done.stdout
    assert ("Größe", "plain words") == (data["message"]["subject"], data["body"]["text"].strip())
    assert "rich words" in data["body"]["html"]
    [part] = data["attachments"]
    assert ("report.pdf", file.read_bytes()) == (part["filename"], base64.b64decode(part["content"]["base64"]))
    over_lmtp = postbus_command("send", "three@example.org", "four@example.org", "--socket", postbus.address("lmtp"))
    assert 0 == over_lmtp.returncode, over_lmtp.stdout + over_lmtp.stderr
    assert 2 == over_lmtp.stdout.count("250 2.0.0")
    assert 3 == len(postbus.wait_events(3))


def test_send_to_nobody_says_what_to_do() -> None:
    """Exit code 1 and the remedy, no traceback."""
    done = postbus_command("send", "a@example.org", "--port", "1")
    assert 1 == done.returncode
    assert "nobody listens at 127.0.0.1:1; start postbus" in done.stderr


def operated(start: Start, tmp_path: Path, web: WebServer) -> tuple[Postbus, list[str]]:
    """Return a postbus that may be operated, and the options that lead to it."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    hook = {"kind": "webhook", "url": f"{web.url}/hook"}
    postbus = start(
        tree(
            sinks={"hook": hook},
            routes=[{"name": "all", "match": "*", "sinks": "hook"}],
            sidecar={"address": "127.0.0.1:0", "token_file": str(token)},
        )
    )
    return postbus, ["--http", f"http://{postbus.http}"]


def test_dead_letters_are_listed_replayed_and_dropped(start: Start, tmp_path: Path, web: WebServer) -> None:
    """What the receiver will never take is kept with the reason; a replay delivers it with its id unchanged."""
    postbus, http = operated(start, tmp_path, web)
    token = ["--token-file", str(tmp_path / "token")]
    web.answers["/hook"] = 413
    with postbus.smtp() as client:
        assert [250, 250] == [verdict.code for verdict in deliver(client, ["a@example.org", "b@example.org"], b"Subject: x\r\n\r\nx\r\n")]
    postbus.log.wait("delivery.dead", at_least=2)
    listed = postbus_command("dead-letters", "list", *http, *token)
    assert 0 == listed.returncode, listed.stderr
    assert all(word in listed.stdout for word in ("a@example.org", "b@example.org", "hook", "too large (413)"))
    assert 1 == postbus_command("dead-letters", "list", *http).returncode
    first, second = (post.headers["webhook-id"] for post in web.posts)
    web.answers.clear()
    replayed = postbus_command("dead-letters", "replay", *http, *token, "--event", first)
    assert re.match(r"1 .*queued for delivery", replayed.stdout), replayed.stdout + replayed.stderr
    wait_until(lambda: len(web.posts) == 3, "not replayed")
    assert first == web.posts[2].headers["webhook-id"]
    assert web.posts[2].body in {post.body for post in web.posts[:2]}
    dropped = postbus_command("dead-letters", "drop", *http, *token, "--event", second)
    assert re.match(r"1 .*dropped", dropped.stdout), dropped.stdout + dropped.stderr
    assert "no dead letters" in postbus_command("dead-letters", "list", *http, *token).stdout
    assert 0 == postbus.terminate()
    postbus.start()
    assert 0 == postbus.status()["spool"]["dead_letters"]


def test_status_reload_and_healthcheck(start: Start, tmp_path: Path, web: WebServer) -> None:
    """Each says what is; what changes state wants the token; who is not there is said."""
    postbus, http = operated(start, tmp_path, web)
    assert "serving" in postbus_command("status", *http).stdout
    assert 0 == postbus_command("healthcheck", *http).returncode
    assert 1 == postbus_command("reload", *http).returncode
    done = postbus_command("reload", *http, "--token-file", str(tmp_path / "token"))
    assert 0 == done.returncode, done.stderr
    assert 1 == len(postbus.log.wait("config.reloaded"))
    assert 0 == postbus.terminate()
    gone = postbus_command("healthcheck", *http)
    assert 1 == gone.returncode
    assert "Traceback" not in gone.stderr


def test_logs_hold_no_content_and_as_much_of_an_address_as_is_allowed(start: Start) -> None:
    """By default the domain; one summary line per session and per message; nothing of what was written."""
    postbus = start(tree(telemetry={"log_format": "json"}))
    with postbus.smtp() as client:
        deliver(client, ["secretperson@example.org"], b"Subject: secretsubject\r\n\r\nsecretwords\r\n", sender="secretsender@example.net")
        client.docmd("secretverb\x1b[31m", "secretargument\x07")
    postbus.wait_events(1)
    [session] = postbus.log.wait("session.closed")
    [message] = postbus.log.find("message.accepted")
    assert (session["session"], 1, 1) == (message["session"], session["accepted"], message["recipients_count"])
    assert 0 == postbus.terminate()
    assert "secret" not in postbus.log.text
    assert "\x1b" not in postbus.log.text
    assert "example.org" in postbus.log.text
