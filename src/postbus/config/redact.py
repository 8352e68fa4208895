"""The configuration as it may be shown: on ``/config``, which is open to whoever reaches the port.

What may be shown is a list, not what may not: switches, numbers, words out of a fixed choice, and the texts named here. Any
other text is shown only as far as its form is known not to hold a secret; a new setting that nobody has thought about comes
out as asterisks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from postbus.config import shape
from postbus.config.finding import Path, dotted
from postbus.config.load import Loaded, Origins
from postbus.sinks.settings import variable_shown

MASK = "***"

PLAIN = frozenset(
    {
        "address", "allow", "best_effort", "bootstrap", "ca", "certificate", "client_ca", "client_id", "file", "folder", "hostname",
        "ident", "key", "kind", "name", "path", "require_sink", "sinks", "source", "token_file", "topic", "topics", "trusted", "users",
        "xclient", "xforward",
    }
)  # fmt: skip
"""Fields whose text is shown as it is: names, addresses and the places of secrets, never secrets."""

FOREIGN = "settings of another package"
"""Stands for the field where we know nothing of a setting but its name."""


def redacted(loaded: Loaded) -> dict[str, Any]:
    """Return the effective settings fit to be shown, where each came from, and the hash of the whole.

    ``settings`` is the tree; ``origins`` says ``default``, ``file`` or ``environment`` for every leaf by its dotted path.
    """
    origins: dict[str, str] = {}
    return {"settings": _shown(loaded.settings, (), "", loaded.origins, origins), "origins": origins, "sha256": loaded.sha256}


def _shown(value: object, path: Path, field: str, known: Origins, origins: dict[str, str]) -> Any:
    """Return *value*, which the field of that name holds or contains, as it may be shown; its origin goes into *origins*."""
    if isinstance(value, BaseModel):
        ours = {
            name: _shown(getattr(value, name), (*path, name), "" if is_choice(value, name) else name, known, origins)
            for name in type(value).model_fields
        }
        return ours | {name: _shown(item, (*path, name), FOREIGN, known, origins) for name, item in (value.model_extra or {}).items()}
    if isinstance(value, Mapping):
        return {str(name): _shown(item, (*path, str(name)), field, known, origins) for name, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [_shown(item, (*path, index), field, known, origins) for index, item in enumerate(value)]
    origins[dotted(path)] = known.of(path)
    if value is None or isinstance(value, bool | int | float) or not field:
        return value
    if field in FORMS:
        return FORMS[field](str(value))
    return str(value) if field in PLAIN else MASK


def is_choice(settings: BaseModel, name: str) -> bool:
    """Say whether the field takes only words that are written in its class."""
    place = shape.shape_of(type(settings).model_fields[name].annotation)
    return bool(place) and all(shape.choices((member,)) for member in place)


def bare_url(text: str) -> str:
    """Return scheme, host and port of *text*: tokens travel in every other part, in the path too (``/services/T000/B000/XXXX``)."""
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return MASK
    if not parts.scheme or not parts.hostname:
        return MASK
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    rest = f"/{MASK}" if parts.path not in ("", "/") or parts.query or parts.username or parts.password else parts.path
    return f"{parts.scheme}://{host}{port}{rest}"


def bare_pattern(text: str) -> str:
    """Return a recipient pattern without whom it names: local parts and regular expressions are masked, domains are not."""
    if text.startswith("/"):
        return f"/{MASK}/"
    local, at, domain = text.rpartition("@")
    if (local if at else domain).lower() in ANYBODY:
        return text
    return f"{MASK}@{domain}" if at else MASK


ANYBODY = ("*", "postmaster")
"""Local parts that name nobody in particular."""

FORMS: Mapping[str, Callable[[str], str]] = {
    "env": variable_shown,
    "match": bare_pattern,
    "otlp_endpoint": bare_url,
    "token_env": variable_shown,
    "url": bare_url,
}
"""Fields whose text is shown in part, by what leaves the rest out."""
