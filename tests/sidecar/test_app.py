"""The sidecar's endpoints, asked over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from postbus import telemetry
from postbus.sidecar.status import Check, Reloaded
from tests.sidecar.fakes import LETTER, MAILBOX, TOKEN, House, house

BEARER = {"authorization": f"Bearer {TOKEN}"}
GUARDED = [
    ("GET", "/dead-letters"),
    ("POST", "/dead-letters/replay"),
    ("POST", "/dead-letters/drop?sink=orders"),
    ("POST", "/reload"),
    ("POST", "/drain"),
]
OPEN = ["/", "/livez?verbose", "/readyz?verbose", "/startupz?verbose", "/healthz", "/statusz", "/metrics", "/config", "/config/schema"]
OPEN += ["/openapi.json", "/nothing/here"]


@pytest.fixture
async def postbus() -> AsyncIterator[House]:
    """A sidecar with a token, running."""
    async with house() as running:
        yield running


@pytest.mark.parametrize("probe", ["livez", "readyz", "startupz", "healthz"])
async def test_a_probe_that_holds_says_ok(postbus: House, probe: str) -> None:
    """Probes answer 200 with a plain ok, and so does HEAD without the body."""
    answer = await postbus.http.get(f"/{probe}")
    head = await postbus.http.head(f"/{probe}")
    assert (200, "ok\n") == (answer.status_code, answer.text)
    assert (200, "") == (head.status_code, head.text)
    assert "no-store" == answer.headers["cache-control"]
    assert "server" not in answer.headers


async def test_a_draining_pod_is_alive_and_not_ready(postbus: House) -> None:
    """A failed check makes /readyz 503 and names the check; /livez knows nothing of it."""
    postbus.status.ready_checks[1] = Check("spool", False, "full\nfaked ok")
    ready, live = await postbus.http.get("/readyz"), await postbus.http.get("/livez")
    assert 503 == ready.status_code
    assert "[-]spool failed: full faked ok\n" in ready.text
    assert ready.text.endswith("readyz check failed\n")
    assert 200 == live.status_code


async def test_a_sink_that_is_down_degrades_and_does_not_count(postbus: House) -> None:
    """A check that does not count shows as degraded, and the pod stays ready."""
    answer = await postbus.http.get("/readyz?verbose")
    assert 200 == answer.status_code
    assert "[+]listener.mx ok\n[+]spool ok\n[~]sink.orders degraded: refused\nreadyz check passed\n" == answer.text


async def test_excluded_checks_do_not_count(postbus: House) -> None:
    """?exclude= may be repeated, and a name that is not there is remarked on without being echoed."""
    postbus.status.ready_checks[1] = Check("spool", False, "full")
    answer = await postbus.http.get("/readyz?verbose&exclude=spool&exclude=canary-name")
    assert 200 == answer.status_code
    assert "[+]spool excluded: ok\n" in answer.text
    assert "warn: no check has one of the names to exclude\n" in answer.text
    assert "canary-name" not in answer.text


@pytest.mark.parametrize(
    ("path", "code"),
    [
        pytest.param("/readyz/spool", 200, id="holds"),
        pytest.param("/readyz/sink.orders", 503, id="does not hold, though it does not count"),
        pytest.param("/livez/spool", 404, id="another probe's"),
    ],
)
async def test_single_checks(postbus: House, path: str, code: int) -> None:
    """/probe/name answers for one check alone."""
    assert code == (await postbus.http.get(path)).status_code


async def test_a_recent_transaction_can_be_asked_for(postbus: House) -> None:
    """How its events stand, while it is remembered."""
    assert "delivered" == (await postbus.http.get("/transactions/01T")).json()["events"][0]["word"]
    assert 404 == (await postbus.http.get("/transactions/01U")).status_code


async def test_statusz_is_text_or_json(postbus: House) -> None:
    """Text by default, one line per number whatever a value holds; JSON where it is accepted, with the checks."""
    text = await postbus.http.get("/statusz")
    json = await postbus.http.get("/statusz", headers={"accept": "application/json"})
    assert ["version: 1.2.3", "listeners.mx.open: 3", "listeners.mx.address: 127.0.0.1:2525"] == text.text.splitlines()[:3]
    assert ["note: <b>  faked: line", "none: -", "list.0: 1", "list.1.a: 2"] == text.text.splitlines()[3:]
    assert text.headers["content-type"].startswith("text/plain")
    assert 3 == json.json()["listeners"]["mx"]["open"]
    assert "sink.orders" == json.json()["checks"]["ready"][2]["name"]


async def test_the_page_escapes_and_runs_nothing(postbus: House) -> None:
    """The HTML page shows values as text, under a policy that forbids scripts."""
    postbus.status.ready_checks.append(Check("odd", False, "<script>alert(1)</script>"))
    answer = await postbus.http.get("/")
    assert 200 == answer.status_code
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_metrics_parse(postbus: House) -> None:
    """/metrics is Prometheus text that its own parser reads, and OpenMetrics where that is asked for."""
    telemetry.http_answered(code=299)
    answer = await postbus.http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert {"code": "299"} in [sample.labels for sample in families["postbus_http_requests"].samples]
    openmetrics = await postbus.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.text.endswith("# EOF\n")


async def test_config_and_schema(postbus: House) -> None:
    """The configuration is shown as it was handed over, and so is its schema."""
    assert "webhook" == (await postbus.http.get("/config")).json()["sinks"]["orders"]["kind"]
    assert "object" == (await postbus.http.get("/config/schema")).json()["type"]


async def test_openapi_lists_every_endpoint(postbus: House) -> None:
    """The description names what can be asked, each operation once."""
    paths = (await postbus.http.get("/openapi.json")).json()["paths"]
    wanted = {"/livez", "/readyz", "/startupz", "/healthz", "/livez/{name}", "/statusz", "/metrics", "/config", "/config/schema"}
    wanted |= {"/dead-letters", "/dead-letters/replay", "/dead-letters/drop", "/reload", "/drain"}
    assert set() == wanted - set(paths)
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("method", "path"), GUARDED, ids=[path for _, path in GUARDED])
async def test_what_changes_state_is_off_without_a_token(method: str, path: str) -> None:
    """Without a configured token even a bearer gets 403 and is told what to set; nothing happens."""
    async with house(token=None) as postbus:
        for headers in ({}, BEARER, {"authorization": "Bearer None"}):
            answer = await postbus.http.request(method, path, headers=headers)
            assert 403 == answer.status_code
            assert "sidecar.token_file" in answer.text
        assert ([], 0) == (postbus.letters.asked, postbus.actions.drains)


@pytest.mark.parametrize(("method", "path"), GUARDED, ids=[path for _, path in GUARDED])
async def test_the_wrong_token_is_refused(postbus: House, method: str, path: str) -> None:
    """Anything but the token gets 401 and changes nothing."""
    for shown in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ü"):
        answer = await postbus.http.request(method, path, headers={b"authorization": shown.encode()})
        assert 401 == answer.status_code
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ([], 0) == (postbus.letters.asked, postbus.actions.drains)


async def test_dead_letters_are_listed_replayed_and_dropped(postbus: House) -> None:
    """With the token, letters are shown, and replay and drop say how many they met."""
    http = postbus.http
    http.headers.update(BEARER)
    page = (await http.get("/dead-letters?sink=orders&limit=10")).json()
    assert (1, MAILBOX, None) == (page["total"], page["letters"][0]["recipient"], page["next_after"])
    assert {"count": 1, "next_after": None} == (await http.post(f"/dead-letters/replay?event_id={LETTER.event_id}")).json()
    assert {"count": 1, "next_after": None} == (await http.post("/dead-letters/replay?sink=orders")).json()
    assert {"count": 1, "next_after": None} == (await http.post("/dead-letters/drop?sink=orders")).json()
    assert 404 == (await http.post("/dead-letters/drop?event_id=unknown")).status_code
    assert 422 == (await http.post("/dead-letters/drop")).status_code
    assert 422 == (await http.get("/dead-letters?limit=100000")).status_code
    assert 422 == (await http.get("/dead-letters?after=nonsense")).status_code
    assert 422 == (await http.post("/dead-letters/replay?after=nonsense")).status_code
    assert 405 == (await http.get("/dead-letters/replay")).status_code
    assert ("replay", None, "orders") in postbus.letters.asked


async def test_no_spool_has_no_dead_letters() -> None:
    """Where nothing is kept, the answer says so."""
    async with house(spool=False) as postbus:
        answer = await postbus.http.get("/dead-letters", headers=BEARER)
        assert (404, True) == (answer.status_code, "no spool" in answer.text)


async def test_reload_and_drain(postbus: House) -> None:
    """Reload says what changed, or what was wrong; drain is accepted."""
    http = postbus.http
    http.headers.update(BEARER)
    assert ["routes"] == (await http.post("/reload")).json()["changed"]
    postbus.actions.outcome = Reloaded(problems=("routes.0: no such sink",))
    answer = await http.post("/reload")
    assert (422, ["routes.0: no such sink"]) == (answer.status_code, answer.json()["problems"])
    assert 202 == (await http.post("/drain")).status_code
    assert 1 == postbus.actions.drains


async def test_a_mistake_of_ours_is_a_fixed_text(postbus: House) -> None:
    """An endpoint that raises answers 500 without a word of the exception, and the server goes on."""
    postbus.status.broken = True
    answer = await postbus.http.get("/livez")
    assert (500, "internal error; the log says more\n") == (answer.status_code, answer.text)
    postbus.status.broken = False
    assert 200 == (await postbus.http.get("/livez")).status_code


@pytest.mark.parametrize("path", OPEN)
async def test_open_endpoints_show_no_canary(postbus: House, path: str) -> None:
    """Neither token nor mailbox nor exception text shows where no token is asked for, not even when it was sent along."""
    postbus.status.broken = path == "/healthz"
    answer = await postbus.http.get(path, headers={**BEARER, "accept": "*/*", "x-canary": "canary-header"})
    shown = answer.text + str(answer.headers)
    assert not [canary for canary in (TOKEN, MAILBOX, "canary-exception", "canary-header") if canary in shown]


async def test_refusals_show_no_canary(postbus: House) -> None:
    """A refusal repeats neither the token in force nor the one shown."""
    for method, path in GUARDED:
        answer = await postbus.http.request(method, path, headers={"authorization": "Bearer canary-guess"})
        assert "canary" not in answer.text + str(answer.headers)
