"""The harness itself: what it starts works, is found again after a restart, and is gone afterwards."""

from __future__ import annotations

import psutil

from tests.e2e.conftest import Start
from tests.e2e.harness import wait_until


def test_a_mail_becomes_an_event_and_a_killed_postbus_comes_back_where_it_was(start: Start) -> None:
    """One mail, one event; after SIGKILL the same address answers again; SIGTERM ends with 0 and nothing is left."""
    postbus = start()
    with postbus.smtp() as client:
        assert {} == client.sendmail("a@example.net", ["b@example.org"], b"Subject: one\r\n\r\nbody\r\n")
    [event] = postbus.wait_events(1)
    assert "b@example.org" == event["data"]["envelope"]["recipient"]
    where, first = postbus.address(), postbus.pid
    postbus.kill()
    postbus.start()
    assert where == postbus.address()
    assert not psutil.pid_exists(first)
    with postbus.smtp() as client:
        client.sendmail("a@example.net", ["b@example.org"], b"Subject: two\r\n\r\nbody\r\n")
    wait_until(lambda: len({found["id"] for found in postbus.events()}) == 2, postbus.log.tail)
    assert postbus.events()[1]["id"] in {event["id"], postbus.events()[-1]["id"]}  # killed before it was marked done: the same id again
    postbus.wait_delivered()
    assert 1 == postbus.metric("postbus_messages_total", listener="mx", outcome="accepted")
    assert 0 == postbus.terminate()
