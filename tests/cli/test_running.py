"""The commands against a running postbus, as people use them: processes, sockets, files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.plugin import install
from tests.e2e.harness import POSTBUS, Postbus, running, tree, wait_until

TOKEN = "a token for tests"


@pytest.fixture(scope="module")
def postbus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postbus]:
    """A postbus with a file sink, and one of another package that rejects while a file exists."""
    folder = tmp_path_factory.mktemp("postbus")
    (folder / "token").write_text(TOKEN)
    (folder / "reject").touch()
    config = tree(
        sinks={
            "file": {"kind": "file", "path": "{folder}/events.jsonl"},
            "notes": {"kind": "notebook", "path": "{folder}/notes", "reject": "{folder}/reject"},
        },
        routes=[
            {"name": "noted", "match": "noted@example.org", "sinks": "notes"},
            {"name": "held", "match": "held@example.org", "sinks": "file", "acceptance": "hold"},
            {"name": "rest", "match": "*@example.org", "sinks": "file"},
        ],
        sidecar={"address": "127.0.0.1:0", "token_file": "{folder}/token"},
    )
    with running(folder, config, environment={"PYTHONPATH": str(install(folder / "site"))}) as started:
        yield started


def run(postbus: Postbus, *arguments: str, http: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of the same installation, told where the sidecar is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTBUS")}
    environment |= {"POSTBUS_HTTP": f"http://{postbus.http}"} if http else {}
    return subprocess.run([POSTBUS, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment)


def send(postbus: Postbus, *arguments: str, http: bool = True) -> subprocess.CompletedProcess[str]:
    """Send a mail to its listener."""
    return run(postbus, "send", *arguments, "--port", str(postbus.port()), http=http)


def test_send_says_what_became_of_the_mail(postbus: Postbus) -> None:
    """The server's words for each recipient, then each event, its sink and its outcome."""
    done = send(postbus, "a@example.org", "b@example.org", "--html", "<b>x</b>", "--wait", "30")
    assert (0, "") == (done.returncode, done.stderr)
    rows = [line.split() for line in done.stdout.splitlines()]
    events = {row[2]: row for row in rows if row[:2] == ["rest", "file"]}
    assert 2 == len(events)
    assert all(row[3] == "delivered" and row[-1].endswith("events.jsonl") for row in events.values())
    assert set(events) <= {event["id"] for event in postbus.wait_events(2)}


def test_send_to_a_route_that_holds(postbus: Postbus) -> None:
    """The sink had the event before the 250."""
    done = send(postbus, "held@example.org", "--wait", "0")
    assert 0 == done.returncode
    assert "held   file  " in done.stdout
    assert "  delivered  " in done.stdout


def test_send_says_who_was_refused(postbus: Postbus) -> None:
    """It exits 1, though another recipient was accepted."""
    done = send(postbus, "a@example.org", "nobody@example.com")
    assert 1 == done.returncode
    assert "nobody@example.com  refused   550 5.1.1 No such recipient here" in done.stdout
    assert "a@example.org       accepted  250 2.0.0 Ok: " in done.stdout


def test_send_without_anybody_to_ask(postbus: Postbus) -> None:
    """It says so, and how to find the events."""
    done = send(postbus, "a@example.org", "--http", "http://127.0.0.1:1", http=False)
    assert 0 == done.returncode
    assert 'every event carries it as "transactionId"' in done.stdout
    assert "http://127.0.0.1:1 does not know it; name the sidecar with --http" in done.stdout


def test_status_and_healthcheck(postbus: Postbus) -> None:
    """For people, and as JSON; healthcheck by its exit code."""
    shown, data = run(postbus, "status"), run(postbus, "status", "--json")
    assert f"mx        smtp      {postbus.address()}" in shown.stdout
    assert ["noted", "held", "rest"] == list(json.loads(data.stdout)["routes"])
    health = run(postbus, "healthcheck")
    assert 0 == health.returncode
    assert "readyz check passed" in health.stdout


def test_dead_letters(postbus: Postbus) -> None:
    """Listed with the reason, replayed when the sink takes them, dropped one by one; only with the token."""
    token = ["--token-file", str(postbus.folder / "token")]
    done = send(postbus, "noted@example.org", "--wait", "30")
    assert (1, True) == (done.returncode, "  dead letter  a sink of kind notebook" in done.stdout)
    assert 1 == send(postbus, "noted@example.org", "--wait", "30").returncode
    listed = run(postbus, "dead-letters", "list", *token)
    assert (2, 2) == (listed.stdout.count("the notebook says no"), listed.stdout.count("  notes  noted@example.org  "))
    letters = [json.loads(line) for line in run(postbus, "dead-letters", "list", "--json", *token).stdout.splitlines()]
    first, second = (letter["event_id"] for letter in letters)
    assert "1 event dropped\n" == run(postbus, "dead-letters", "drop", "--event", first, *token).stdout
    missing = run(postbus, "dead-letters", "drop", "--event", first, *token)
    assert (1, True) == (missing.returncode, "answered 404: there is no such dead letter" in missing.stderr)
    (postbus.folder / "reject").unlink()
    assert "1 event queued for delivery\n" == run(postbus, "dead-letters", "replay", *token).stdout
    wait_until(lambda: (postbus.folder / "notes").read_text() == f"{second}\n", "the replayed event")
    assert "no dead letters\n" == run(postbus, "dead-letters", "list", *token).stdout


def test_what_changes_state_needs_the_token(postbus: Postbus, tmp_path: Path) -> None:
    """Without one, or with another, the words say where it goes."""
    (tmp_path / "wrong").write_text("wrong")
    for arguments in (["reload"], ["reload", "--token-file", str(tmp_path / "wrong")]):
        done = run(postbus, *arguments)
        assert 1 == done.returncode
        assert "answered 401: this needs the right token" in done.stderr
        assert "by --token-file" in done.stderr


def test_reload_says_what_changed(postbus: Postbus) -> None:
    """What is in force, what needs a restart, and what is wrong, by path."""
    token = ["--token-file", str(postbus.folder / "token")]
    assert "nothing differs; certificates were read again\n" == run(postbus, "reload", *token).stdout
    postbus.config["routes"][2]["mode"] = "raw"
    postbus.config["source"] = "//other.example/postbus"
    postbus.config["listeners"]["more"] = {"address": "127.0.0.1:0"}
    postbus.write_config()
    expected = [
        "changed: source",
        "changed: listeners.more",
        "changed: routes[2].mode",
        "needs a restart: source",
        "needs a restart: listeners.more (new: restart to listen there)",
    ]
    assert expected == run(postbus, "reload", *token).stdout.splitlines()
    postbus.config["sinks"]["notes"]["colour"] = "red"
    postbus.write_config()
    done = run(postbus, "reload", *token)
    assert 2 == done.returncode
    assert "sinks.notes: notes has no colour; known are page, path, reject\nnothing changed\n" in done.stdout


def test_a_second_postbus_on_the_same_addresses(postbus: Postbus, tmp_path: Path) -> None:
    """What is in the way is named, and the first goes on."""
    file = tmp_path / "postbus.yaml"
    listener, spool = f"listeners: {{mx: {{address: '{postbus.address()}'}}}}", f"spool: {{folder: '{tmp_path}/spool', ballast_octets: 0}}"
    for sidecar, expected in (
        (postbus.http, f"sidecar.address {postbus.http}: something else listens there already; choose another port"),
        ("127.0.0.1:0", f"listeners.mx.address {postbus.address()}: address already in use; stop what listens there"),
    ):
        file.write_text(f"{listener}\n{spool}\nsidecar: {{address: '{sidecar}'}}\n")
        done = run(postbus, "run", "--config", str(file), http=False)
        assert 1 == done.returncode
        assert f"postbus: {expected}" in done.stderr
    file.write_text(
        f"spool: {{folder: '{postbus.folder}/spool'}}\nlisteners: {{mx: {{address: '127.0.0.1:0'}}}}\nsidecar: {{enabled: no}}\n"
    )
    done = run(postbus, "run", "--config", str(file), http=False)
    assert f"is in use by process {postbus.pid}: stop that one, or give this one another folder" in done.stderr
    assert 0 == run(postbus, "healthcheck").returncode
