"""Ask a running postbus through its sidecar. The standard library's HTTP client is enough for one request at a time."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

TIMEOUT_S = 10.0
POLL_S = 0.1
PAGE = 500
"""Dead letters changed with one request, so that none takes long and progress can be shown."""

# No proxy of the environment between us and our own pod, and no redirect to somewhere else with the token.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_REMEDIES: Mapping[int, str] = {
    401: "name the file with the sidecar's token by --token-file",
    403: "restart, and name the same file by --token-file",
    404: "check what is asked for",
    500: "its log says why",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A probe's answer."""

    ok: bool
    text: str


class TokenUnreadableError(Exception):
    """The file with the token cannot be read; the text says why."""


class Trouble(AbstractContextManager[None]):
    """Turns what can go wrong while asking into one line: *fail* gets what happened and what to do, and ends the command."""

    def __init__(self, http: str, fail: Callable[[str, str], NoReturn]) -> None:
        self._http = http
        self._fail = fail

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        match error:
            case urllib.error.HTTPError():
                self._fail(
                    f"{self._http} answered {error.code}: {_said(error)}", _REMEDIES.get(error.code, "is a postbus behind that address?")
                )
            case TokenUnreadableError():
                self._fail(str(error), "check --token-file")
            case urllib.error.URLError(reason=reason) if not isinstance(reason, TimeoutError):
                self._fail(f"nobody answers at {self._http}: {_reason(reason)}", "start postbus, or name its sidecar with --http")
            case TimeoutError() | urllib.error.URLError():
                self._fail(f"{self._http} did not answer within {TIMEOUT_S:g} s", "its log may say why")
            case OSError() | ValueError() | KeyError() | HTTPException():
                self._fail(
                    f"{self._http} gave no answer of a postbus: {error}", "name the sidecar's address with --http, as in http://host:8080"
                )


def _reason(reason: object) -> str:
    return ((reason.strerror if isinstance(reason, OSError) else None) or str(reason)).lower()


def _said(error: urllib.error.HTTPError) -> str:
    """Return the words of an error answer, from JSON's ``detail`` or as they are, on one line."""
    with error:
        text = error.read(4096).decode("utf-8", "replace").strip()
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["detail"])
    return " ".join(text.split())[:300]


def token(file: Path | None) -> str | None:
    """Return the bearer token in *file*.

    Raises:
        TokenUnreadableError: it cannot be read, or is empty.
    """
    if file is None:
        return None
    try:
        text = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not text"
        raise TokenUnreadableError(f"the token file {file} cannot be read: {why}") from error
    if not text:
        raise TokenUnreadableError(f"the token file {file} is empty")
    return text


def _ask(
    http: str,
    path: str,
    *,
    method: str = "GET",
    bearer: str | None = None,
    accept: str = "application/json",
    timeout_s: float = TIMEOUT_S,
) -> str:
    if not http.startswith(("http://", "https://")):
        raise ValueError(f"{http!r} is no http address")
    request = urllib.request.Request(http.rstrip("/") + path, method=method, headers={"Accept": accept})  # noqa: S310 - checked above
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    with _OPENER.open(request, timeout=timeout_s) as answer:
        return str(answer.read().decode("utf-8"))


def get(http: str, path: str, bearer: str | None = None, timeout_s: float = TIMEOUT_S) -> Any:
    """Return the JSON at *path*."""
    return json.loads(_ask(http, path, bearer=bearer, timeout_s=timeout_s))


def status(http: str) -> Mapping[str, Any]:
    """Return /statusz. Raises ValueError for what another program answers."""
    found = get(http, "/statusz")
    if not isinstance(found, dict) or "listeners" not in found:
        raise ValueError("its /statusz is not one of ours")
    return found


def probe(http: str, path: str) -> Answer:
    """Return a probe's answer, whichever it is."""
    try:
        return Answer(True, _ask(http, path, accept="text/plain"))
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        with error:
            return Answer(False, error.read().decode("utf-8", "replace"))


def reload(http: str, bearer: str | None) -> Mapping[str, Any]:
    """Ask for a reload and return what came of it: ``changed``, ``needs_restart``, ``problems``."""
    try:
        found: Mapping[str, Any] = json.loads(_ask(http, "/reload", method="POST", bearer=bearer, timeout_s=60))
    except urllib.error.HTTPError as error:
        if error.code != 422:
            raise
        with error:
            found = json.loads(error.read())
    return found


def fates(http: str, transaction: str, wait_s: float) -> Sequence[Mapping[str, Any]] | None:
    """Return how each event of *transaction* stands once all are decided, or *wait_s* is over; ``None`` when nobody there knows it."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            found: Sequence[Mapping[str, Any]] = get(http, f"/transactions/{quote(transaction)}", timeout_s=2)["events"]
        except (OSError, ValueError, KeyError, TypeError, HTTPException):
            return None
        if all(event["decided"] for event in found) or time.monotonic() >= deadline:
            return found
        time.sleep(POLL_S)


def dead_letters(http: str, bearer: str | None, sink: str | None) -> Iterator[Mapping[str, Any]]:
    """Yield every dead letter, oldest first, page by page."""
    after: str | None = None
    while True:
        page = get(http, "/dead-letters" + _query(sink=sink, after=after, limit=PAGE), bearer)
        yield from page["letters"]
        after = page["next_after"]
        if after is None:
            return


def dead_letters_total(http: str, bearer: str | None, sink: str | None) -> int:
    """Return how many dead letters there are."""
    return int(get(http, "/dead-letters" + _query(sink=sink, limit=1), bearer)["total"])


def change_letters(http: str, bearer: str | None, action: str, event: str | None, sink: str | None) -> Iterator[int]:
    """Replay or drop dead letters, some with each request; yield how many so far."""
    after: str | None = None
    count = 0
    while True:
        path = f"/dead-letters/{action}" + _query(event_id=event, sink=sink, after=after, limit=PAGE)
        said = json.loads(_ask(http, path, method="POST", bearer=bearer, timeout_s=60))
        count += int(said["count"])
        yield count
        after = said.get("next_after")
        if after is None:
            return


def _query(**values: object) -> str:
    said = {name: value for name, value in values.items() if value is not None and value != ""}
    return f"?{urlencode(said)}" if said else ""
