"""What a log line looks like: one JSON object, or one readable line. Pure functions.

Nothing a peer says can reach a terminal as more than text: C0 and C1 controls, DEL, line separators and bidirectional overrides
are escaped, long values are cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson

LINE_MAX_OCTETS = 8_192
"""Longer lines have their values cut; container runtimes split lines at 16 KiB."""
VALUE_MAX_CHARACTERS = 1_024
WIDE_LINE_KEYS = 16
"""Lines with more keys have their values cut shorter, so that the line stays within bounds."""
TRACEBACK = "traceback"
"""The one key whose value may have several lines."""
TRACEBACK_MAX_CHARACTERS = 4_096

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z0-9@._:/+<>,\-\[\]()%*]+")
_COLOURS: Mapping[str, str] = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}


def escape(text: str) -> str:
    r"""Return *text* with every character that could steer a terminal or end a line written as ``\uXXXX``."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def encode_json(time_text: str, level: str, event: str, keys: Mapping[str, object]) -> bytes:
    """Return one line of JSON; keys whose value is ``None`` are left out. A traceback becomes a list of lines."""
    record: dict[str, object] = {"ts": time_text, "level": level, "event": event, **keys}
    if None in keys.values():
        record = {key: value for key, value in record.items() if value is not None}
    if TRACEBACK in record:
        return _encode_carefully(record)
    try:
        line = orjson.dumps(record, default=repr, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, an integer beyond 64 bits
        return _encode_carefully(record)
    # A backslash means that something was escaped: a control character too would come back to life in `jq -r`.
    if len(line) > LINE_MAX_OCTETS or b"\\" in line:
        return _encode_carefully(record)
    if line.isascii() and b"\x7f" not in line:
        return line
    return _encode_carefully(record) if _UNSAFE.search(line[:-1].decode()) else line


def _encode_carefully(record: Mapping[str, object]) -> bytes:
    limit = VALUE_MAX_CHARACTERS if len(record) <= WIDE_LINE_KEYS else VALUE_MAX_CHARACTERS // 4
    clean = {escape(key): _clean(value, limit) if key != TRACEBACK else _traceback_lines(value) for key, value in record.items()}
    return orjson.dumps(clean, option=orjson.OPT_APPEND_NEWLINE)


def _clean(value: object, limit: int) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    text = value if isinstance(value, str) else repr(value)
    return escape(text if len(text) <= limit else text[:limit] + "...")


def _traceback_lines(value: object) -> list[str]:
    return [escape(line) for line in str(value)[-TRACEBACK_MAX_CHARACTERS:].splitlines()]


def encode_text(time_text: str, level: str, event: str, keys: Mapping[str, object], *, colour: bool) -> bytes:
    """Return one readable line: time of day, level, event, ``key=value`` pairs; a traceback follows on lines of its own."""
    pairs = " ".join(f"{escape(key)}={_quoted(value)}" for key, value in keys.items() if value is not None and key != TRACEBACK)
    time_of_day = time_text[11:-1]
    head = f"{time_of_day} {level:<7} {event}"
    if colour:
        head = f"\x1b[2m{time_of_day}\x1b[0m {_COLOURS.get(level, '')}{level:<7}\x1b[0m \x1b[1m{event}\x1b[0m"
    lines = [f"{head} {pairs}".rstrip()]
    if keys.get(TRACEBACK):
        lines += ["    " + line for line in _traceback_lines(keys[TRACEBACK])]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _quoted(value: object) -> str:
    text = str(_clean(value, VALUE_MAX_CHARACTERS))
    return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
