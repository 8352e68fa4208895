"""Status as text and as one plain HTML page. Pure; every value is escaped; no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from postbus.sidecar.probes import one_line
from postbus.sidecar.status import Check

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
LINKS = ("/livez?verbose", "/readyz?verbose", "/startupz?verbose", "/statusz", "/metrics", "/config", "/config/schema", "/openapi.json")

_HEAD = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>postbus</title>"
_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:0 0 1.5em}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top}"
    ".ok{color:#176b2c}.failed{color:#a11212;font-weight:bold}.degraded{color:#8a5a00}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}.ok{color:#7ccf8f}.failed{color:#ff8a8a}.degraded{color:#e8b563}a{color:#8ab4f8}}"
)


def flatten(numbers: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of every leaf of *numbers*, in order."""
    for key, value in numbers.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, name + ".")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from flatten(item, f"{name}.{index}.")
                else:
                    yield f"{name}.{index}", str(item)
        else:
            yield name, "-" if value is None else str(value)


def as_text(numbers: Mapping[str, object]) -> str:
    """Return one ``name: value`` line per number."""
    return "".join(f"{one_line(name)}: {one_line(text)}\n" for name, text in flatten(numbers))


def as_html(numbers: Mapping[str, object], probes: Mapping[str, Sequence[Check]]) -> str:
    """Return the status page: the checks of each probe, then the numbers, then where to look further."""
    parts = [f"{_HEAD}<style>{_STYLE}</style><h1>postbus</h1>"]
    for probe, checks in probes.items():
        rows = "".join(_check_row(check) for check in checks)
        parts.append(f"<h2>{escape(probe)}</h2><table>{rows}</table>")
    rows = "".join(f"<tr><th>{escape(name)}<td>{escape(text)}" for name, text in flatten(numbers))
    parts.append(f"<h2>status</h2><table>{rows}</table><p>")
    parts.append(" · ".join(f"<a href='{link}'>{link.partition('?')[0]}</a>" for link in LINKS))
    return "\n".join(parts) + "\n"


def _check_row(check: Check) -> str:
    word = "ok" if check.ok else "failed" if check.counts else "degraded"
    return f"<tr><th>{escape(check.name)}<td class={word}>{word}<td>{escape(check.detail)}"
