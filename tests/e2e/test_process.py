"""The running process: how it starts and what it says, reload without dropping a session, drain without losing a reply."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.certificates import Authority, Pair
from tests.e2e.conftest import Start
from tests.e2e.harness import POSTBUS, Log, Postbus, connect, deliver, free_port, tree, unique, wait_until
from tests.e2e.webserver import WebServer, serving

MAIL = b"Subject: process\r\n\r\nbody\r\n"


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server."""
    with serving() as server:
        yield server


def ended(folder: Path, config: Any) -> tuple[int, list[str]]:
    """Run postbus that cannot start; return exit code and what it said, the log's lines left out."""
    one = Postbus(folder, config)
    try:
        one.start(ready=False)
        return one.wait(), one.log.words
    finally:
        one.close()


# --- start


def test_it_says_what_listens_and_which_routes_lead_where(start: Start) -> None:
    """For machines one line each; for people a few aligned lines with the command that sends a first mail, which works."""
    postbus = start(tree(telemetry={"log_format": "json"}))
    [bound], [told] = postbus.log.find("listener.bound"), postbus.log.find("route.told")
    assert ("mx", "smtp", "none") == (bound["listener"], bound["protocol"], bound["tls"])
    expected = {"route": "everyone", "match": "*", "acceptance": "spool", "mode": "both", "sinks": "file"}
    assert expected.items() <= told.items()
    [started] = postbus.log.find("app.started")
    done = subprocess.run(started["try_with"], shell=True, capture_output=True, text=True, timeout=30, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "you@example.org" == postbus.wait_events(1)[0]["data"]["envelope"]["recipient"]


def test_it_tells_people(tmp_path: Path) -> None:
    """The text log holds the same for a person at a terminal."""
    one = Postbus(tmp_path, tree(telemetry={"log_format": "text"}))
    try:
        one.start(ready=False)
        text = wait_until(lambda: one.log.text if "takes mail." in one.log.text and "next" in one.log.text else "", "no welcome")
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert any(line.startswith("smtp in 127.0.0.1:") and line.endswith("(mx, TLS none)") for line in lines), text
        assert "route * -> file (everyone: both, spool)" in lines, text
        assert any(line.startswith("http http://127.0.0.1:") for line in lines), text
        assert any(line.startswith("next ") and " send you@example.org" in line for line in lines), text
        assert 0 == one.terminate()
    finally:
        one.close()


def test_the_embedded_defaults(tmp_path: Path) -> None:
    """Without a file: everybody's mail, events on standard output, the log on standard error, a spool in the folder; Ctrl-C ends it."""
    places = {"POSTBUS__LISTENERS__SMTP__ADDRESS": "127.0.0.1:0", "POSTBUS__SIDECAR__ADDRESS": "127.0.0.1:0"}
    log = Log(tmp_path / "log")
    with log.path.open("wb") as errors:
        process = subprocess.Popen([POSTBUS, "run"], cwd=tmp_path, env={**os.environ, **places}, stdout=subprocess.PIPE, stderr=errors)
    try:
        log.wait("app.started")
        with connect(log.find("listener.bound")[0]["address"]) as client:
            assert [250] == [verdict.code for verdict in deliver(client, ["anybody@anywhere.example"], MAIL)]
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        assert ("anybody@anywhere.example", "parsed") == (event["data"]["envelope"]["recipient"], event["data"]["mode"])
        assert (tmp_path / "spool").is_dir()
        process.send_signal(signal.SIGINT)
        assert 0 == process.wait(15)
        assert b"" == process.stdout.read()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_a_socket_left_by_a_killed_postbus_is_taken_over_and_one_in_use_is_not(start: Start, tmp_path: Path) -> None:
    """A stale path must not keep postbus from starting; a living owner must not lose his."""
    listeners = {"lmtp": {"address": f"unix:{tmp_path}/lmtp.sock", "protocol": "lmtp"}}
    first = start(tree(listeners=listeners))
    first.kill()
    assert (tmp_path / "lmtp.sock").is_socket()
    first.start()
    (tmp_path / "second").mkdir()
    code, words = ended(tmp_path / "second", tree(listeners=listeners))
    assert (1, 1) == (code, len(words)), words
    assert "address already in use" in words[0]
    with first.smtp("lmtp") as client:
        assert [250] == [verdict.code for verdict in deliver(client, ["a@example.org"], MAIL)]
    assert 0 == first.terminate()
    assert not (tmp_path / "lmtp.sock").exists()


def test_ipv6(start: Start) -> None:
    """A listener and the sidecar on the loopback of IPv6; the event says where the client came from."""
    postbus = start(tree(listeners={"mx": {"address": "[::1]:0"}}))
    with smtplib.SMTP("::1", postbus.port(), timeout=10) as client:
        assert [250] == [verdict.code for verdict in deliver(client, ["a@example.org"], MAIL)]
    assert "::1" == postbus.wait_events(1)[0]["data"]["client"]["ip"]


def test_an_address_in_use_is_said(tmp_path: Path) -> None:
    """Exit code 1, the listener and the remedy in one line, and no traceback; the same for the sidecar's."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        for name, config in {
            "listeners.mx": tree(listeners={"mx": {"address": taken}}),
            "sidecar": tree(sidecar={"address": taken}),
        }.items():
            (tmp_path / name).mkdir()
            code, [words] = ended(tmp_path / name, config)
            assert 1 == code
            assert words.startswith(f"postbus: {name}.address {taken}: "), words
            assert "; " in words, "what would help?"


def test_a_spool_has_one_owner(start: Start, tmp_path: Path) -> None:
    """A second postbus on the same folder ends with 1 and says who has it; the first goes on."""
    first = start()
    code, words = ended(tmp_path, tree(spool={"folder": str(first.folder / "spool"), "ballast_octets": 0}))
    assert 1 == code
    assert 1 == len(words), words
    assert str(first.folder / "spool") in words[0]
    with first.smtp() as client:
        assert [250] == [verdict.code for verdict in deliver(client, ["a@example.org"], MAIL)]


def test_a_wrong_configuration_is_told_line_by_line(tmp_path: Path) -> None:
    """Exit code 2; one line for each mistake with its place; `postbus check` says the same."""
    config = tree(
        listeners={"mx": {"adress": "127.0.0.1:0"}},
        routes=[{"name": "a", "match": "*", "sinks": "nowhere"}],
        drain_timeout_s=-1,
    )
    code, words = ended(tmp_path, config)
    assert 2 == code
    *lines, last = words
    for place in ("listeners.mx.adress", "drain_timeout_s"):
        assert 1 == sum(place in line for line in lines), lines
    assert last.startswith(f"postbus: not started, {len(lines)} to mend"), last
    check = [POSTBUS, "check", "-c", str(tmp_path / "postbus.yaml")]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=30, check=False)
    assert 2 == checked.returncode
    assert lines == checked.stdout.splitlines()[: len(lines)]


def test_a_dead_sink_degrades_and_does_not_unready(start: Start, web: WebServer) -> None:
    """Mail is taken and kept; /readyz stays 200 and says degraded; `require_sink` makes it 503; what was kept is delivered in the end."""
    gone = free_port()
    dead = {"kind": "webhook", "url": f"http://127.0.0.1:{gone}/x"}
    postbus = start(tree(sinks={"dead": dead}, routes=[{"name": "all", "match": "*", "sinks": "dead"}]))
    with postbus.smtp() as client:
        assert 250 == deliver(client, ["a@example.org"], MAIL)[0].code
    wait_until(lambda: "[~]sink.dead degraded: " in postbus.get("/readyz?verbose").text, postbus.log.tail)
    assert 200 == postbus.get("/readyz").code == postbus.get("/livez").code
    assert (1, True) == (postbus.status()["sinks"]["dead"]["owed"], postbus.status()["sinks"]["dead"]["paused"] is not None)
    postbus.config["require_sink"] = ["dead"]
    assert "config.reloaded" == postbus.reload()["event"]
    assert 503 == postbus.get("/readyz").code
    assert 200 == postbus.get("/livez").code
    postbus.config["sinks"]["dead"]["url"] = f"{web.url}/x"
    assert "config.reloaded" == postbus.reload()["event"]
    postbus.wait_delivered()
    assert 1 == len(web.posts)
    assert 200 == postbus.get("/readyz").code


# --- reload


def test_a_session_outlives_a_reload_and_sees_the_new_routes(start: Start) -> None:
    """A transaction begun before goes on after; a new route takes a recipient that was unknown; a route that is gone refuses."""
    old, new = ({"name": name, "match": f"*@{name}.example.org", "sinks": "file"} for name in ("old", "new"))
    postbus = start(tree(routes=[old]))
    with postbus.smtp() as client:
        client.ehlo()
        client.mail("a@example.net")
        assert [250, 550] == [client.rcpt(f"one@{name}.example.org")[0] for name in ("old", "new")]
        postbus.config["routes"] = [new]
        assert "routes" in postbus.reload()["changed"]
        assert [550, 250] == [client.rcpt(f"two@{name}.example.org")[0] for name in ("old", "new")]
        assert 250 == client.data(MAIL)[0]
    events = postbus.wait_events(2)
    assert {("one@old.example.org", "old"), ("two@new.example.org", "new")} == {
        (event["data"]["envelope"]["recipient"], event["data"]["route"]["name"]) for event in events
    }


def test_a_bad_file_changes_nothing(start: Start) -> None:
    """Broken YAML and an unknown sink: the log says so, /readyz?verbose says so, mail flows as before; a good file ends it."""
    postbus = start()
    good = postbus.config_file.read_bytes()
    for broken in (b"listeners: [", good.replace(b"sinks: file", b"sinks: nowhere")):
        before = len(postbus.log.find("config.refused"))
        postbus.config_file.write_bytes(broken)
        postbus.signal(signal.SIGHUP)
        postbus.log.wait("config.refused", at_least=before + 1)
        assert "[~]configuration degraded: " in postbus.get("/readyz?verbose").text
        assert 200 == postbus.get("/readyz").code
        with postbus.smtp() as client:
            assert 250 == deliver(client, ["a@example.org"], MAIL)[0].code
    assert "config.reloaded" == postbus.reload()["event"]
    assert "configuration" not in postbus.get("/readyz?verbose").text
    assert 1 == postbus.metric("postbus_reloads_total", outcome="done")
    assert 2 == postbus.metric("postbus_reloads_total", outcome="refused")


def test_a_changed_file_is_noticed_without_a_signal(start: Start) -> None:
    """Kubernetes changes mounted files and sends nothing."""
    postbus = start(tree(watch_interval_s=0.1))
    postbus.config["routes"][0]["match"] = "*@example.org"
    postbus.write_config()
    postbus.log.wait("config.reloaded")
    with postbus.smtp() as client:
        assert [550, 250] == [verdict.code for verdict in deliver(client, ["a@example.net", "a@example.org"], MAIL)]


def shown(port: int, trust: ssl.SSLContext, *, implicit: bool = False) -> bytes:
    """Return the certificate that a listener shows a new connection."""
    if implicit:
        with smtplib.SMTP_SSL("127.0.0.1", port, context=trust, timeout=10) as client:
            return _certificate(client)
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.starttls(context=trust)
        return _certificate(client)


def _certificate(client: smtplib.SMTP) -> bytes:
    assert isinstance(client.sock, ssl.SSLSocket)
    found = client.sock.getpeercert(binary_form=True)
    assert found is not None
    return found


def first_of(pair: Pair) -> bytes:
    """Return the certificate of *pair* as it is shown."""
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----")


def test_certificates_are_read_again(start: Start, authority: Authority) -> None:
    """After SIGHUP the new certificate is shown, to STARTTLS and implicit TLS; a session under the old one goes on."""
    stem = unique("reload")
    pair, trust = authority.issue(stem), authority.client()
    listeners = {
        "mx": {"address": "127.0.0.1:0", "tls": pair.tls("starttls")},
        "tls": {"address": "127.0.0.1:0", "tls": pair.tls("implicit")},
    }
    postbus = start(tree(listeners=listeners))
    old = first_of(pair)
    assert old == shown(postbus.port(), trust) == shown(postbus.port("tls"), trust, implicit=True)
    with smtplib.SMTP("127.0.0.1", postbus.port(), timeout=10) as before, smtplib.SMTP("127.0.0.1", postbus.port(), timeout=10) as waiting:
        before.starttls(context=trust)
        assert 250 == deliver(before, ["a@example.org"], MAIL)[0].code
        authority.issue(stem)
        assert "config.reloaded" == postbus.reload()["event"]
        new = first_of(pair)
        assert old != new
        assert new == shown(postbus.port(), trust) == shown(postbus.port("tls"), trust, implicit=True)
        assert 250 == deliver(before, ["b@example.org"], MAIL)[0].code
        waiting.starttls(context=trust)  # connected before the reload, upgraded after
        assert 250 == deliver(waiting, ["c@example.org"], MAIL)[0].code
    assert 3 == len(postbus.wait_events(3))


def test_a_certificate_that_does_not_fit_its_key_is_not_used(start: Start, authority: Authority) -> None:
    """The old pair stays in use, and log, metric and /readyz?verbose say so, until a good one comes."""
    stem = unique("mismatch")
    pair, trust = authority.issue(stem), authority.client()
    postbus = start(tree(listeners={"mx": {"address": "127.0.0.1:0", "tls": pair.tls("starttls")}}))
    old = first_of(pair)
    other = authority.issue(unique("other"))
    pair.certificate.write_bytes(other.certificate.read_bytes())
    refused = postbus.reload()
    assert "config.refused" == refused["event"]
    assert "listeners.mx.tls" in refused["problem"]
    assert "[~]configuration degraded: " in postbus.get("/readyz?verbose").text
    assert old == shown(postbus.port(), trust)
    pair.key.write_bytes(other.key.read_bytes())
    assert "config.reloaded" == postbus.reload()["event"]
    assert first_of(other) == shown(postbus.port(), trust)


# --- drain


def in_transfer(postbus: Postbus, recipient: str) -> smtplib.SMTP:
    """Return a client that has sent half of a message."""
    client = postbus.smtp()
    client.ehlo()
    client.mail("a@example.net")
    client.rcpt(recipient)
    assert 354 == client.docmd("DATA")[0]
    client.send(b"Subject: drained\r\n\r\nfirst half\r\n")
    return client


def test_drain(start: Start) -> None:
    """SIGTERM: an idle session gets 421, a message in transfer its 250; not ready but measurable meanwhile; then exit code 0."""
    postbus = start()
    idle, busy = postbus.smtp(), in_transfer(postbus, "late@example.org")
    try:
        idle.ehlo()
        postbus.signal(signal.SIGTERM)
        assert 421 == idle.getreply()[0]
        wait_until(lambda: postbus.get("/readyz").code == 503, postbus.log.tail)
        assert 200 == postbus.get("/metrics").code == postbus.get("/livez").code
        assert 1 == postbus.metric("postbus_draining")
        with pytest.raises(ConnectionRefusedError):
            postbus.smtp()
        busy.send(b"second half\r\n.\r\n")
        assert [250, 421] == [busy.getreply()[0], busy.getreply()[0]]
    finally:
        idle.close()
        busy.close()
    assert 0 == postbus.wait()
    [event] = postbus.wait_events(1)
    assert "first half\r\nsecond half" in event["data"]["body"]["text"].replace("\n", "\r\n").replace("\r\r", "\r")
    [stopped] = postbus.log.find("app.stopped")
    assert (True, 0) == (stopped["in_time"], stopped["left_in_spool"])


def test_drain_waits_for_the_true_reply_of_a_held_message(start: Start, web: WebServer) -> None:
    """The sink is slow: the sender who waits when SIGTERM comes still gets what the sink said."""
    sinks = {"hook": {"kind": "webhook", "url": f"{web.url}/slow"}}
    postbus = start(tree(sinks=sinks, routes=[{"name": "all", "match": "*", "sinks": "hook", "acceptance": "hold"}]))
    web.gate.clear()
    client = in_transfer(postbus, "held@example.org")
    try:
        client.send(b".\r\n")
        wait_until(lambda: web.posts, "nothing was posted")
        postbus.signal(signal.SIGTERM)
        postbus.log.wait("app.draining")
        web.gate.set()
        assert 250 == client.getreply()[0]
    finally:
        client.close()
    assert 0 == postbus.wait()


def test_what_cannot_be_delivered_stays_for_the_next_start(start: Start, web: WebServer) -> None:
    """The sink is away while postbus drains: exit code 0, and the event, with its id, comes after the next start."""
    web.answers["/x"] = 503
    sinks = {"hook": {"kind": "webhook", "url": f"{web.url}/x"}}
    postbus = start(tree(sinks=sinks, routes=[{"name": "all", "match": "*", "sinks": "hook"}]))
    with postbus.smtp() as client:
        assert 250 == deliver(client, ["kept@example.org"], MAIL)[0].code
    wait_until(lambda: web.posts, "nothing was posted")
    assert 0 == postbus.terminate()
    assert 1 == postbus.log.find("app.stopped")[0]["left_in_spool"]
    refused = web.posts[-1]
    web.answers.clear()
    postbus.start()
    postbus.wait_delivered()
    assert refused.body == web.posts[-1].body
    assert json.loads(refused.body)["id"] == web.posts[-1].headers["webhook-id"]


def test_a_second_signal_cuts_the_drain_short(start: Start) -> None:
    """Who asks twice does not want to wait: the session in transfer is cut without a 250, and the exit code is 0."""
    postbus = start(tree(drain_timeout_s=60))
    client = in_transfer(postbus, "cut@example.org")
    try:
        postbus.signal(signal.SIGTERM)
        postbus.log.wait("app.draining")
        postbus.signal(signal.SIGTERM)
        assert 0 == postbus.wait(10)
        try:
            client.send(b".\r\n")
            code = client.getreply()[0]
        except (smtplib.SMTPServerDisconnected, OSError):
            code = 0
        assert code in {0, 421}
    finally:
        client.close()
    assert [] == postbus.events()
