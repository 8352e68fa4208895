"""The HTTP application: probes, status, metrics, configuration, dead letters, reload and drain.

Reading is open, because it shows nothing secret: settings come redacted, details are ours. What changes state, and the dead letters,
which hold addresses, need ``Authorization: Bearer`` and are off (403) while no token is configured. No endpoint reads a body, so no
body is ever held. An endpoint that raises is a mistake of ours: a fixed text for the client, the rest for the log.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from postbus import __version__, telemetry
from postbus.sidecar.page import CONTENT_SECURITY_POLICY, as_html, as_text
from postbus.sidecar.probes import judge, judge_one
from postbus.sidecar.status import Actions, Check, DeadLetters, NoCursorError, Status
from postbus.sidecar.token import Tokens, admits
from postbus.telemetry.exposition import render_metrics

NO_TOKEN = "this needs a bearer token, and none is configured: set sidecar.token_file"  # noqa: S105 - words, not a token
BAD_TOKEN = "this needs the right token, as in: Authorization: Bearer <token>"  # noqa: S105 - words, not a token
NO_SPOOL = "there is no spool here, so nothing is kept"
NO_TRANSACTION = "this transaction is not among the last ones here; the log knows more"
NO_ACTIONS = "this process cannot be asked to do that"
HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

Metrics = Callable[[str], tuple[bytes, str]]
Name = Annotated[str, Path(max_length=200, description="Name of one check.")]
Verbose = Annotated[str | None, Query(description="Present: one line per check.")]
Exclude = Annotated[list[str] | None, Query(description="Checks that do not count; may be repeated.")]
SinkName = Annotated[str | None, Query(max_length=200, description="Only this sink's.")]
TransactionId = Annotated[str, Path(max_length=64, description="The id in the 250 after the last dot.")]
EventId = Annotated[str | None, Query(max_length=200, description="Only this event.")]
Cursor = Annotated[str | None, Query(max_length=500, description="Cursor: next_after of the page before.")]
Some = Annotated[int | None, Query(ge=1, le=1_000, description="At most so many at once; next_after goes on. Without it: all.")]


def make_app(
    status: Status,
    *,
    dead_letters: DeadLetters | None = None,
    actions: Actions | None = None,
    token: Tokens = lambda: None,
    metrics: Metrics = render_metrics,
) -> FastAPI:
    """Return the application over what *status* knows.

    Args:
        status: what is known of the process.
        dead_letters: the spool's, ``None`` without a spool.
        actions: reload and drain, ``None`` where they make no sense.
        token: returns the bearer token in force, ``None`` for none; asked at every request.
        metrics: renders /metrics for an Accept header.
    """
    app = FastAPI(title="postbus", version=__version__, docs_url=None, redoc_url=None, summary="Probes, status and dead letters.")
    app.include_router(_probes(status))
    app.include_router(_views(status, metrics))
    guard = [Depends(_guard(token))]
    app.include_router(_dead_letters(dead_letters), dependencies=guard, tags=["dead letters"])
    app.include_router(_actions(actions), dependencies=guard, tags=["actions"])
    app.add_middleware(Front)
    return app


class Front:
    """The outermost layer: counts answers, adds headers, answers HEAD as GET, turns what escapes into a fixed 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                telemetry.http_answered(code=message["status"])
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        if scope["method"] == "HEAD":  # the server leaves the body away by the scope it keeps itself
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, receive, send_on)
        except Exception as exc:  # noqa: BLE001 - the top of a request
            telemetry.http_failed(path=scope["path"], error=type(exc).__name__, traceback=traceback.format_exc())
            if not started:
                await PlainTextResponse("internal error; the log says more\n", 500)(scope, receive, send_on)


def _json(data: object, code: int = 200) -> Response:
    return Response(orjson.dumps(data, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n", code, media_type="application/json")


# --- probes


def _probes(status: Status) -> APIRouter:
    router = APIRouter(tags=["probes"], default_response_class=PlainTextResponse)
    sources: Mapping[str, Callable[[], Sequence[Check]]] = {
        "livez": status.live,
        "readyz": status.ready,
        "startupz": status.started,
        "healthz": status.live,  # the name older tools know
    }
    for probe, source in sources.items():
        _add_probe(router, probe, source)
    return router


def _add_probe(router: APIRouter, probe: str, source: Callable[[], Sequence[Check]]) -> None:
    async def whole(verbose: Verbose = None, exclude: Exclude = None) -> Response:
        verdict = judge(probe, source(), verbose=verbose is not None, exclude=exclude or ())
        return PlainTextResponse(verdict.text, verdict.code)

    async def single(name: Name) -> Response:
        verdict = judge_one(source(), name)
        return PlainTextResponse(verdict.text, verdict.code) if verdict else PlainTextResponse("there is no such check\n", 404)

    router.add_api_route(f"/{probe}", whole, name=probe, summary=f"Every check of {probe}", responses={503: {"description": "Not now"}})
    router.add_api_route(f"/{probe}/{{name}}", single, name=f"{probe} check", summary=f"One check of {probe}")


# --- views


def _views(status: Status, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/statusz", summary="What goes on: text, or JSON by Accept")
    async def statusz(request: Request) -> Response:
        numbers = status.numbers()
        if "application/json" in request.headers.get("accept", ""):
            checks = {"live": status.live(), "ready": status.ready(), "started": status.started()}
            return _json({**numbers, "checks": {probe: [asdict(check) for check in found] for probe, found in checks.items()}})
        return PlainTextResponse(as_text(numbers))

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def metrics_view(request: Request) -> Response:
        body, content_type = metrics(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    @router.get("/transactions/{transaction_id}", summary="How the events of one of the last transactions stand")
    async def transaction(transaction_id: TransactionId) -> Response:
        known = status.transaction(transaction_id)
        if known is None:
            raise HTTPException(404, NO_TRANSACTION)
        return _json({"events": known})

    @router.get("/config", summary="The effective configuration, redacted")
    async def config() -> Response:
        return _json(status.config())

    @router.get("/config/schema", summary="JSON Schema of the configuration")
    async def config_schema() -> Response:
        return _json(status.config_schema())

    @router.get("/", include_in_schema=False)
    async def front_page() -> Response:
        page = as_html(status.numbers(), {"ready": status.ready(), "live": status.live(), "started": status.started()})
        return HTMLResponse(page, headers={"content-security-policy": CONTENT_SECURITY_POLICY, "referrer-policy": "no-referrer"})

    return router


# --- what needs the token


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _guard(token: Tokens) -> Callable[[Request], Awaitable[None]]:
    async def guard(request: Request) -> None:
        action = _action(request)
        secret = token()
        if secret is None:
            telemetry.admin_acted(action=action, outcome="off", peer=_peer(request))
            raise HTTPException(403, NO_TOKEN)
        if not admits(secret, request.headers.get("authorization", "")):
            telemetry.admin_acted(action=action, outcome="refused", peer=_peer(request))
            raise HTTPException(401, BAD_TOKEN, {"www-authenticate": 'Bearer realm="postbus"'})

    return guard


def _action(request: Request) -> str:
    """Return the route's name, a word of ours, never the path the client wrote."""
    route = request.scope.get("route")
    return str(getattr(route, "name", "unknown"))


@contextmanager
def _cursor_checked() -> Iterator[None]:
    try:
        yield
    except NoCursorError:
        raise HTTPException(422, "after: this is no next_after of a page before") from None


def _dead_letters(letters: DeadLetters | None) -> APIRouter:
    router = APIRouter()

    def kept() -> DeadLetters:
        if letters is None:
            raise HTTPException(404, NO_SPOOL)
        return letters

    async def change(
        request: Request, action: str, event_id: str | None, sink: str | None, after: str | None, limit: int | None
    ) -> Response:
        book = kept()
        with _cursor_checked():
            changed = await (book.replay if action == "replay" else book.drop)(event_id=event_id, sink=sink, after=after, limit=limit)
        telemetry.admin_acted(action=_action(request), outcome="done" if changed.count else "nothing", peer=_peer(request))
        if event_id is not None and not changed.count and changed.next_after is None:
            raise HTTPException(404, "there is no such dead letter")
        return _json(asdict(changed))

    @router.get("/dead-letters", summary="Events given up, oldest first", name="dead_letters.list")
    async def page(
        sink: SinkName = None,
        after: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> Response:
        with _cursor_checked():
            return _json(asdict(await kept().page(sink=sink, after=after, limit=limit)))

    @router.post("/dead-letters/replay", summary="Deliver one, a sink's or all again, with ids unchanged", name="dead_letters.replay")
    async def replay(
        request: Request, event_id: EventId = None, sink: SinkName = None, after: Cursor = None, limit: Some = None
    ) -> Response:
        return await change(request, "replay", event_id, sink, after, limit)

    @router.post("/dead-letters/drop", summary="Forget one, or a sink's, for good", name="dead_letters.drop")
    async def drop(request: Request, event_id: EventId = None, sink: SinkName = None, after: Cursor = None, limit: Some = None) -> Response:
        if not event_id and not sink:
            raise HTTPException(422, "say what to drop: event_id, sink or both")
        return await change(request, "drop", event_id, sink, after, limit)

    return router


def _actions(actions: Actions | None) -> APIRouter:
    router = APIRouter()

    def able() -> Actions:
        if actions is None:
            raise HTTPException(404, NO_ACTIONS)
        return actions

    bad: dict[int | str, dict[str, Any]] = {422: {"description": "Nothing changed; the problems are listed"}}

    @router.post("/reload", summary="Read the configuration again, as SIGHUP does", name="reload", responses=bad)
    async def reload(request: Request) -> Response:
        outcome = await able().reload()
        telemetry.admin_acted(action="reload", outcome="failed" if outcome.problems else "done", peer=_peer(request))
        return _json(asdict(outcome), 422 if outcome.problems else 200)

    @router.post("/drain", summary="Begin to drain, as SIGTERM does", name="drain", status_code=202)
    async def drain(request: Request) -> Response:
        able().drain()
        telemetry.admin_acted(action="drain", outcome="done", peer=_peer(request))
        return _json({"draining": True}, 202)

    return router
