"""The bearer token that guards what changes state (RFC 6750 s2.1)."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from pathlib import Path

from postbus.sidecar.settings import SidecarSettings

TOKEN_MAX_OCTETS = 4_096

Tokens = Callable[[], str | None]
"""Returns the token in force, ``None`` where there is none. Asked at every request, so that a rotated secret counts at once."""


def tokens(settings: SidecarSettings, environ: Mapping[str, str]) -> Tokens:
    """Return where the token comes from: the file, else the environment variable, else nowhere.

    A file that cannot be read, or is empty, is no token: everything guarded is refused, nothing is let through.
    """
    if settings.token_file is not None:
        path = settings.token_file
        return lambda: _read(path)
    if settings.token_env is not None:
        value = environ.get(settings.token_env, "").strip()
        return lambda: value or None
    return lambda: None


def admits(token: str, authorization: str) -> bool:
    """Return whether an Authorization header shows *token*; the time taken tells nothing of where they differ."""
    scheme, _, shown = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode())


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(TOKEN_MAX_OCTETS).decode("utf-8", "replace").strip() or None
    except OSError:
        return None
