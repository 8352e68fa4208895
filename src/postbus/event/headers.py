"""Header fields from octets, in order: RFC 5322 fields, RFC 2047 encoded words, RFC 2231 parameters, RFC 6532 UTF-8.

Nothing here raises for what a header holds, and every step is linear in its length: regular expressions without nested
repetition, each scan going on where the last one ended.
"""

from __future__ import annotations

import re
from binascii import Error, a2b_base64, a2b_qp
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from postbus.event import charsets, making
from postbus.event.parsed import Defect, Header

BLOCK_MAX_OCTETS: Final = 256 * 1024
"""Of the whole header block; past it the message is published raw."""

FIELD_MAX_OCTETS: Final = 64 * 1024
"""Of one field's value; the rest is cut. Far above any field in honest mail but not above what some DKIM and ARC chains reach together."""

FIELDS_MAX: Final = 1000
"""Fields in one block; past it the message is published raw. Exim and Sendmail stop at about as many."""

_END_OF_LINE = re.compile(rb"\r?\n(?![ \t])")
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t")) + b"\x7f"
_FIELD: Final = re.compile(r"^([!-9;-~]+)[ \t]*:[ \t]*([^\r]*)\r\n", re.MULTILINE)
_FIELD_NAME = re.compile(r"[!-9;-~]+")
_ENCODED_WORD = re.compile(r"=\?([^?*\s]{1,64})(?:\*[^?\s]{0,64})?\?([bBqQ])\?([^?]*)\?=")
_BLANK = re.compile(r"[ \t\r\n]*")


class Fields(NamedTuple):
    """A header block as read.

    Attributes:
        headers: in order, duplicates kept.
        loose: the value of each before encoded words are decoded, unfolded and trimmed: what has structure is read from it.
        defects: what was wrong.
        truncated: a value was cut at FIELD_MAX_OCTETS.
        regular: fields and nothing else, in ASCII without controls, lines ended by CRLF: there is one way to read them.
    """

    headers: list[Header]
    loose: list[str]
    defects: list[Defect]
    truncated: bool
    regular: bool = False


def block_end(octets: bytes) -> int:
    """Return where the header block of a message ends: after the CRLF of its last field, or the end of *octets*."""
    if octets.startswith((b"\r\n", b"\n")):
        return 0
    crlf = octets.find(b"\r\n\r\n")
    bare = octets.find(b"\n\n", 0, len(octets) if crlf < 0 else crlf)
    if bare >= 0:
        return bare + 1
    return crlf + 2 if crlf >= 0 else len(octets)


def read(block: bytes) -> Fields:
    """Return the fields of a header *block* (without its closing empty line)."""
    if _is_plain(block):
        return _read_plain(block)
    fields = Fields([], [], [], truncated=False)
    cut = False
    for line in _END_OF_LINE.split(block):
        name, value, colon = _split(line)
        if not colon:
            if line:
                fields.defects.append(Defect("header.malformed", None, "line without a field name"))
            continue
        if len(value) > FIELD_MAX_OCTETS:
            value, cut = value[:FIELD_MAX_OCTETS], True
            fields.defects.append(Defect("header.too_long", None, "value cut at 64 KiB"))
        fields.headers.append(_header(name, value, fields.defects))
        fields.loose.append(value.decode("utf-8", "replace"))
    return fields._replace(truncated=cut)


def _is_plain(block: bytes) -> bool:
    """Return whether a block is pure ASCII with CRLF line ends and no encoded word, controls or endless value."""
    if not block.isascii() or len(block) > FIELD_MAX_OCTETS or b"=?" in block:
        return False
    rest = b"".join(block.split(b"\r\n"))
    return len(rest.translate(None, _CONTROLS)) == len(rest)


def _read_plain(block: bytes) -> Fields:
    """Read a plain block: the common case, at a third of the cost."""
    text = block.decode("ascii")
    if "\r\n " in text or "\r\n\t" in text:
        text = text.replace("\r\n ", " ").replace("\r\n\t", "\t")
    if not text.endswith("\r\n"):
        text += "\r\n"
    found = _FIELD.findall(text)
    strays = text.count("\r\n") - len(found) if text != "\r\n" else 0
    defects = [Defect("header.malformed", None, "line without a field name")] * strays
    values = [value.rstrip(" \t") for _, value in found]
    read = [making.header(name, value) for (name, _), value in zip(found, values, strict=True)]
    return Fields(read, values, defects, truncated=False, regular=bool(read) and not strays)


def _split(line: bytes) -> tuple[str, bytes, bool]:
    """Return a field's name, its unfolded value, and whether it is a field. White space before the colon is old syntax (RFC 5322 s4.5)."""
    name, colon, value = line.partition(b":")
    bare = name.rstrip(b" \t").decode("utf-8", "replace")
    if not colon or not _FIELD_NAME.fullmatch(bare):
        return "", b"", False
    return bare, _FOLD.sub(b"", value).strip(b" \t\r\n"), True


def _header(name: str, value: bytes, defects: list[Defect]) -> Header:
    found: list[Defect] = []
    text, lossy = text_of(value, found)
    defects.extend(found)
    if value.isascii() and not lossy:
        return Header(name, text)
    if not value.isascii():
        defects.append(Defect("header.nonascii", None, _known(name)))
    return Header(name, text, lossy, value)


def _known(name: str) -> str:
    """Return *name* for a defect's detail; it is sender-controlled, so only as much of it as a real name needs."""
    return name[:64]


def text_of(value: bytes, defects: list[Defect]) -> tuple[str, bool]:
    """Return an unfolded *value* decoded and scrubbed, and whether anything was lost on the way. *defects* is added to."""
    text = value.decode("utf-8", "replace")
    lossy = "\ufffd" in text and not _is_utf8(value)
    if "=?" in text:
        text, lost = decode_words(text, defects)
        lossy = lossy or lost
    clean = charsets.scrub_line(text)
    return clean, lossy or clean != text


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Word(NamedTuple):
    charset: str
    octets: bytes
    whole: bool


def decode_words(text: str, defects: list[Defect]) -> tuple[str, bool]:
    """Return *text* with its encoded words decoded (RFC 2047), and whether that was lossy. *defects* is added to.

    Words glued to text and words holding spaces are decoded too (Outlook and many list servers write both). Neighbours
    in one charset are joined before decoding: mail programs split characters across words although they must not (s5).
    """
    pieces: list[str] = []
    words: list[_Word] = []
    lossy = False
    position = 0
    for match in _ENCODED_WORD.finditer(text):
        between = text[position : match.start()]
        if not words or not _BLANK.fullmatch(between):
            lossy = _flush(words, pieces, defects) or lossy
            pieces.append(between)
        words.append(_word(match))
        position = match.end()
    lossy = _flush(words, pieces, defects) or lossy
    pieces.append(text[position:])
    return "".join(pieces), lossy


def _word(match: re.Match[str]) -> _Word:
    charset, encoding, payload = match.groups()
    octets = payload.encode("utf-8", "surrogatepass")
    if encoding in "qQ":
        return _Word(charset.lower(), a2b_qp(octets, header=True), whole=True)
    decoded, whole = base64_of(octets)
    return _Word(charset.lower(), decoded, whole)


def _flush(words: list[_Word], pieces: list[str], defects: list[Defect]) -> bool:
    """Decode the pending *words* into *pieces* and forget them; return whether that was lossy."""
    lossy = False
    for charset, octets, whole in _joined(words):
        decoded = charsets.decode(octets, charset)
        if decoded.unknown:
            defects.append(Defect("charset.unknown", None, "encoded word"))
        if not whole:
            defects.append(Defect("base64.invalid", None, "encoded word"))
        lossy = lossy or decoded.lossy or not whole
        pieces.append(decoded.text)
    words.clear()
    return lossy


def _joined(words: list[_Word]) -> Iterator[_Word]:
    """Yield *words*, runs of one charset as one."""
    run: list[_Word] = []
    for word in words:
        if run and run[0].charset != word.charset:
            yield _run(run)
            run = []
        run.append(word)
    if run:
        yield _run(run)


def _run(words: list[_Word]) -> _Word:
    return _Word(words[0].charset, b"".join(word.octets for word in words), all(word.whole for word in words))


def base64_of(octets: bytes) -> tuple[bytes, bool]:
    """Return base64 *octets* decoded as far as they make sense, and whether they were whole.

    Decoding stops at a line with octets outside the alphabet, since list servers append their footers in clear; within
    a single line such octets are skipped (RFC 2045 s6.8). What follows the padding is dropped, missing padding is
    supplied, one stray character at the end is dropped.
    """
    try:
        return a2b_base64(octets, strict_mode=True), True
    except Error:
        pass
    foreign = _FOREIGN.search(octets)
    lines = octets if foreign is None else octets[: octets.rfind(b"\n", 0, foreign.start()) + 1] or octets
    head, _, rest = lines.partition(b"=")
    digits = head.translate(None, _NOT_BASE64)
    padding = -len(digits) % 4
    rest = rest.translate(None, b"\r\n \t")
    whole = foreign is None and padding < 3 and rest == b"="[: max(padding - 1, 0)] and (padding > 0) == (b"=" in lines)
    if padding == 3:
        digits, padding = digits[:-1], 0
    return a2b_base64(digits + b"=" * padding), whole


_FOREIGN = re.compile(rb"[^A-Za-z0-9+/=\s]")
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))


class Parameters(NamedTuple):
    """A structured field such as Content-Type: its first token, lower-case, and its parameters, names lower-case."""

    value: str
    parameters: dict[str, str]
    lossy: bool


_PARAMETER = re.compile(
    r"""([^\s=;"*]{1,128})(?:\*(\d{1,3}))?(\*)?[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))""",
    re.DOTALL,
)
_SEPARATORS = re.compile(r"[;\s]*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parameters_of(text: str) -> Parameters:
    """Return the token and the parameters of a structured field, RFC 2231 continuations and charsets decoded.

    Args:
        text: the value, unfolded, encoded words not yet decoded: they are forbidden in parameters, and decoded there
            all the same when a value holds them (most mail programs write file names that way).

    The first of equal names counts. Numbered pieces are joined in the order of their numbers.
    """
    return _short_parameters_of(text) if len(text) <= _SHORT_CHARACTERS else _parameters_of(text)


def _parameters_of(text: str) -> Parameters:
    head, _, _ = text.partition(";")
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    plain: dict[str, str] = {}
    for match in _matches(text, len(head)):
        name, number, star, quoted, token = match.groups()
        value = _ESCAPE.sub(r"\1", quoted) if quoted is not None else token.strip(" \t")
        if number is None and not star:
            plain.setdefault(name.lower(), value)
        else:
            pieces.setdefault(name.lower(), {}).setdefault(int(number or 0), (value, bool(star)))
    lossy = False
    for name, numbered in pieces.items():
        plain[name], lost = _assembled(numbered)
        lossy = lossy or lost
    return Parameters(head.strip(" \t").lower(), plain, lossy)


# The same few content types come again and again. Long ones hold boundaries and file names, which do not.
_SHORT_CHARACTERS: Final = 64
_short_parameters_of = lru_cache(maxsize=256)(_parameters_of)


def _matches(text: str, position: int) -> Iterator[re.Match[str]]:
    """Yield the parameters in *text* from *position* on; what is none is skipped up to the next semicolon, once."""
    separators = _SEPARATORS.match
    while position < len(text):
        found = separators(text, position)
        position = found.end() if found else position
        match = _PARAMETER.match(text, position)
        if match is None:
            position = text.find(";", position)
            if position < 0:
                return
        else:
            yield match
            position = match.end()


def _assembled(numbered: dict[int, tuple[str, bool]]) -> tuple[str, bool]:
    """Join the pieces of one RFC 2231 parameter and decode them; return also whether that was lossy."""
    charset = None
    octets = bytearray()
    for order, number in enumerate(sorted(numbered)):
        value, starred = numbered[number]
        if starred and order == 0 and value.count("'") >= 2:
            charset, _, value = value.split("'", 2)
        octets += unquote_to_bytes(value) if starred else value.encode("utf-8", "surrogatepass")
    decoded = charsets.decode(bytes(octets), charset or None)
    return decoded.text, decoded.lossy


_MESSAGE_ID: Final = re.compile(r"<[^<>\s]{1,998}>")


def message_ids(text: str) -> tuple[str, ...]:
    """Return the message ids in *text*, angle brackets kept, at most FIELDS_MAX."""
    if text.count("<") <= 1:
        match = _MESSAGE_ID.search(text)
        return (match[0],) if match else ()
    return tuple(_MESSAGE_ID.findall(text)[:FIELDS_MAX])


_DATE_MAX_CHARACTERS = 100
_DATE: Final = re.compile(
    r"(?:[A-Za-z]{1,9},?\s{0,4})?(\d{1,2})[\s-]{1,4}([A-Za-z]{3})[a-z]{0,6}[\s-]{1,4}(\d{2,4})\s{1,4}"
    r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d{1,9})?)?(?:\s{0,4}([+-]\d{4}|[A-Za-z]{1,5}))?\s{0,4}(?:\(.*)?"
)
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = dict(zip(_MONTH_NAMES, range(1, 13), strict=True))
# RFC 5322 s4.3. Military letters were so often wrong that it has them read as -0000.
_ZONES_H = {"edt": -4, "est": -5, "cdt": -5, "cst": -6, "mdt": -6, "mst": -7, "pdt": -7, "pst": -8}


def date_utc(text: str) -> str | None:
    """Return an RFC 5322 date as RFC 3339 in UTC with seconds, or ``None`` when it is none. An unknown zone counts as UTC (s4.3)."""
    return _date_utc(text[:_DATE_MAX_CHARACTERS])


@lru_cache(maxsize=256)  # mail that comes in numbers was often written in the same second
def _date_utc(text: str) -> str | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    day, month_name, year_text, hour, minute, second, zone = match.groups()
    month = _MONTHS.get(month_name.lower(), 0)
    try:
        days = date(_year(year_text), month, int(day)).toordinal()
        seconds = _clock_s(int(hour), int(minute), int(second or 0)) - _offset_s(zone or "")
        more_days, seconds = divmod(seconds, 86_400)
        shifted = date.fromordinal(days + more_days)
    except (ValueError, OverflowError):
        return None
    return f"{shifted.isoformat()}T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}Z"


def _year(text: str) -> int:
    """Return the year of two, three or four digits (RFC 5322 s4.3)."""
    year = int(text)
    if len(text) == 4:
        return year
    return year + (1900 if len(text) == 3 or year >= 50 else 2000)


def _clock_s(hour: int, minute: int, second: int) -> int:
    """Return seconds since midnight; a leap second counts as the one before. Raises ValueError past 24 hours."""
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError("no time of day")
    return hour * 3600 + minute * 60 + min(second, 59)


def _offset_s(zone: str) -> int:
    """Return how far *zone* is ahead of UTC, in seconds. Raises ValueError past 24 hours."""
    if zone[:1] not in ("+", "-"):
        return _ZONES_H.get(zone.lower(), 0) * 3600
    offset = _clock_s(int(zone[1:3]), int(zone[3:5]), 0)
    return -offset if zone[0] == "-" else offset
