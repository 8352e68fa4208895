"""Ask a running postbus through its sidecar. The standard library's HTTP client is enough for one request at a time."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import urlencode

TIMEOUT_S = 10.0

# No proxy of the environment between us and our own pod, and no redirect to somewhere else with the token.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Answer:
    """A probe's answer."""

    ok: bool
    text: str


class Trouble(AbstractContextManager[None]):
    """Turns what can go wrong while asking into one line: *fail* gets what happened and what to do, and ends the command."""

    def __init__(self, http: str, fail: Callable[[str, str], NoReturn]) -> None:
        self._http = http
        self._fail = fail

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, urllib.error.HTTPError):
            self._fail(f"{self._http} answered {error.code}: {_said(error)}", "see --token-file for what needs a token")
        if isinstance(error, urllib.error.URLError):
            self._fail(f"nobody answers at {self._http}: {error.reason}", "start postbus, or name its sidecar with --http")
        if isinstance(error, (OSError, ValueError)):
            self._fail(f"{self._http} cannot be asked: {error}", "check --http and --token-file")


def _said(error: urllib.error.HTTPError) -> str:
    """Return the words of an error answer, from JSON's ``detail`` or as they are."""
    text = error.read(4096).decode("utf-8", "replace").strip()
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text


def token(file: Path | None) -> str | None:
    """Return the bearer token in *file*."""
    return None if file is None else file.read_text("utf-8").strip()


def _ask(http: str, path: str, *, method: str = "GET", bearer: str | None = None, accept: str = "application/json") -> str:
    if not http.startswith(("http://", "https://")):
        raise ValueError(f"{http!r} is no http address")
    request = urllib.request.Request(http.rstrip("/") + path, method=method, headers={"Accept": accept})  # noqa: S310 - checked above
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode("utf-8"))


def get(http: str, path: str, bearer: str | None = None) -> Any:
    """Return the JSON at *path*."""
    return json.loads(_ask(http, path, bearer=bearer))


def text(http: str, path: str) -> str:
    """Return the text at *path*."""
    return _ask(http, path, accept="text/plain")


def probe(http: str, path: str) -> Answer:
    """Return a probe's answer, whichever it is."""
    try:
        return Answer(True, text(http, path))
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return Answer(False, error.read().decode("utf-8", "replace"))


def post(http: str, path: str, bearer: str | None) -> Any:
    """Ask for a change and return what came of it."""
    return json.loads(_ask(http, path, method="POST", bearer=bearer))


def dead_letters(http: str, bearer: str | None, sink: str | None) -> Iterator[tuple[object, ...]]:
    """Yield every dead letter as (event, sink, recipient, since, attempts, reason), page by page."""
    after: str | None = None
    while True:
        query = {name: value for name, value in (("sink", sink), ("after", after)) if value}
        page = get(http, "/dead-letters" + (f"?{urlencode(query)}" if query else ""), bearer)
        for row in page["letters"]:
            since = datetime.fromtimestamp(row["dead_since_ms"] / 1000, UTC).isoformat(timespec="seconds")
            yield row["event_id"], row["sink"], row["recipient"], since, row["attempts"], row["reason"]
        after = page["next_after"]
        if after is None:
            return


def change_letters(http: str, bearer: str | None, action: str, event: str | None, sink: str | None) -> int:
    """Replay or drop dead letters and return how many."""
    query = {name: value for name, value in (("event_id", event), ("sink", sink)) if value}
    said = post(http, f"/dead-letters/{action}" + (f"?{urlencode(query)}" if query else ""), bearer)
    return int(said["count"])
