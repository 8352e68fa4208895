"""A message taken apart within bounds. The sole user of fast_mail_parser, which is native code fed by strangers.

Three defences stand round it, in this order:

1. ``guard`` looks at the octets only: headers of lawful size, few parts, few encoded words. It answers where the
   message may be parsed: ``simple`` (small: here, in the caller's process), ``worker`` (in a process that may die),
   ``suspect`` (there, and may cost it much) or ``raw`` (nowhere).
2. What ``simple`` lets through cannot hurt: at most SIMPLE_MAX_OCTETS hold too few levels to exhaust a stack of 2 MiB
   (10,300 levels and 0.55 MB exhausted 8 MiB) and too few encoded words for the parser's quadratic search to be felt.
3. Everything else is bounded by the limits of the process it runs in (``bridge.parsing``).

The parser's lazy *tree* is used throughout: it is cheaper than its flat mode (1.5 us against 4 for 1 KB) and gives each
part's octets where the flat mode has decoded them by its own charset rules. The message's own headers are read by us
from the octets. Its nested messages are not entered: a ``message/rfc822`` part is an attachment.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Final, Literal, NamedTuple

from fast_mail_parser import DecodeError, ParseError, PyLazyMimePart, parse_email_tree

from postbus.event import charsets, facts, headers, making
from postbus.event.parsed import Attachment, Defect, Parsed, Text, unreadable

SIMPLE_MAX_OCTETS: Final = 64 * 1024
"""Largest message parsed in process."""

SIMPLE_BLOCK_MAX_OCTETS: Final = 16 * 1024
"""Largest header block of a message parsed in process: hostile address lists cost up to 0.8 us an octet, and the loop waits."""

SIMPLE_PARTS_MAX = 16
"""Most ``content-type`` fields in a message parsed in process."""

SIMPLE_WORDS_MAX: Final = 200
"""Most ``=?`` in a message parsed in process."""

SIMPLE_DASHES_MAX = 64
"""Most lines that begin with two dashes in a message parsed in process: each may begin a part."""

PARTS_MAX: Final = 1000
"""Parts in one message; with more it is published raw."""

DEPTH_MAX = 32
"""Levels of multiparts; with more it is published raw."""

WORD_WORK_MAX: Final = 2_500_000_000
"""Most ``=?`` times octets: the parser's search for encoded words is quadratic; just below this it took 0.42 s."""

TEXT_MAX_OCTETS: Final = 256 * 1024
"""Of the text and of the HTML body in an event, in UTF-8; the rest is cut."""

INLINE_MAX_OCTETS = 1024 * 1024
"""Default for the contents of attachments kept, together."""

FILENAME_MAX_CHARACTERS = 255
"""Longer file names are cut: no file system takes them."""

DEFECTS_MAX: Final = 100
"""Defects told of one message; hostile mail can have one per line."""

DEFECTS = {
    "header.block_too_large": "the header block exceeds 256 KiB or 1,000 fields; published raw",
    "header.too_long": "one header value exceeds 64 KiB and was cut",
    "header.malformed": "a line in the header block is no field and was skipped",
    "header.nonascii": "a header holds octets outside ASCII that no encoded word announces",
    "header.duplicate": "a header that may occur once occurs more often; the first counts",
    "address.invalid": "an address header holds text that is no address",
    "date.invalid": "the Date header is no date",
    "charset.unknown": "a declared charset is not known; UTF-8 or windows-1252 was used",
    "charset.mismatch": "a text does not fit its declared charset; UTF-8 or windows-1252 was used",
    "text.control": "a body holds control characters, which were replaced",
    "base64.invalid": "base64 is malformed; what made sense was decoded",
    "encoding.unknown": "a Content-Transfer-Encoding is not known; the octets were left as they are",
    "part.undecodable": "a part could not be decoded and was left out",
    "boundary.missing": "a multipart has no boundary, or its boundary never occurs",
    "mime.malformed": "the structure could not be parsed; published raw",
    "mime.parts": "more than 1,000 parts; published raw",
    "mime.depth": "parts nested deeper than 32 levels; published raw",
    "mime.encoded_words": "too many encoded words for the size; published raw",
    "parser.timeout": "parsing took more CPU time than it is allowed; published raw",
    "parser.memory": "parsing ran out of the memory it is allowed; published raw",
    "parser.died": "parsing ended its process; published raw",
    "event.truncated": "the event was cut to the size its sinks carry",
}
"""Every code an event's ``defects`` can show from here and from rendering, with what it means."""


class Verdict(NamedTuple):
    """Where a message may be parsed, and for ``raw`` why nowhere. ``suspect`` is as ``worker``, but may take all the time there is."""

    way: Literal["simple", "worker", "suspect", "raw"]
    defects: tuple[Defect, ...] = ()


def guard(octets: bytes) -> Verdict:
    """Return where *octets* may be parsed, from their size and a few counts. Linear: 20 ms for 25 MB, 2 us for 1 KB."""
    end = headers.block_end(octets)
    if end > headers.BLOCK_MAX_OCTETS:
        return _refused("header.block_too_large", "over 256 KiB")
    lower = octets.lower()
    parts = lower.count(b"content-type")
    words = octets.count(b"=?") if b"?" in octets else 0  # one octet is sought several times as fast as two
    if parts > PARTS_MAX:
        return _refused("mime.parts", "content-type fields")
    if words * len(octets) > WORD_WORK_MAX:
        return _refused("mime.encoded_words", "encoded words times size")
    if words > SIMPLE_WORDS_MAX or (parts and _branches(octets, lower, parts)):  # without a content type there is one part
        return _SUSPECT
    return _SIMPLE if len(octets) <= SIMPLE_MAX_OCTETS and end <= SIMPLE_BLOCK_MAX_OCTETS else _WORKER


def _branches(octets: bytes, lower: bytes, parts: int) -> bool:
    """Return whether there may be so many parts, or parts so deep, that taking them apart is felt."""
    return parts > SIMPLE_PARTS_MAX or octets.count(b"\n--") > SIMPLE_DASHES_MAX or any(map(lower.__contains__, _NESTING))


_SIMPLE: Final = Verdict("simple")
_WORKER = Verdict("worker")
_SUSPECT = Verdict("suspect")
_NESTING = (b"message/", b"digest")


def _refused(code: str, detail: str) -> Verdict:
    return Verdict("raw", (Defect(code, None, detail),))


def parse(octets: bytes, *, inline_max_octets: int = INLINE_MAX_OCTETS) -> Parsed:
    """Return *octets* taken apart. Call it only where ``guard`` allows.

    Args:
        octets: a whole message.
        inline_max_octets: the contents of attachments are kept while they fit this together, as base64, in order; of the
            others only size and hash are told.
    """
    end = headers.block_end(octets)
    fields = headers.read(octets[:end])
    if len(fields.headers) > headers.FIELDS_MAX:
        return unreadable(Defect("header.block_too_large", None, "over 1,000 fields"))
    try:
        return _assembled(fields, _Parts(inline_max_octets), octets, end)
    except DecodeError:
        return _parse_leniently(octets, end, fields, inline_max_octets)
    except ParseError:
        return unreadable(Defect("mime.malformed", None, "no structure found"))
    except BaseException as exc:
        # A panic of the native code arrives as a BaseException that no module exports.
        if type(exc).__name__ != "PanicException":
            raise
        return unreadable(Defect("parser.died", None, "panic"))


def _parse_leniently(octets: bytes, end: int, fields: headers.Fields, inline_max_octets: int) -> Parsed:
    """Parse a message with broken base64 somewhere, which the parser gives up whole (every list footer behind base64 is such a case).

    One letter of each ``Content-Transfer-Encoding`` is changed, so that the parser leaves all octets as they are, and
    changed back in what it returns; decoding is then ours, as far as it makes sense.
    """
    if _DISGUISED.search(octets):
        return unreadable(Defect("part.undecodable", None, "transfer encoding"))
    try:
        return _assembled(fields, _LenientParts(inline_max_octets), _ENCODING_NAME.sub(_disguise, octets), end)
    except ParseError:
        return unreadable(Defect("mime.malformed", None, "no structure found"))


_ENCODING_NAME = re.compile(rb"content-transfer-encoding", re.IGNORECASE)
_DISGUISED = re.compile(rb"content-xransfer-encoding", re.IGNORECASE)
_CHANGED_LETTER = len("content-")
_DISGUISE = {b"t": b"x", b"T": b"X", b"x": b"t", b"X": b"T"}


def _disguise(match: re.Match[bytes]) -> bytes:
    """Exchange the letter that makes the name, in either direction, keeping its case."""
    name = match[0]
    return name[:_CHANGED_LETTER] + _DISGUISE[name[_CHANGED_LETTER : _CHANGED_LETTER + 1]] + name[_CHANGED_LETTER + 1 :]


_STRUCTURAL = ("content-type", "content-disposition", "content-transfer-encoding")


class _BoundExceededError(Exception):
    """The structure exceeds a bound; carries the defect."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code)
        self.defect = Defect(code, None, detail)


def _assembled(fields: headers.Fields, parts: _Parts, octets: bytes, end: int) -> Parsed:
    """Return the parse of *octets*, whose header block has *fields* and ends at *end*.

    Most mail that programs write says nothing of its structure, and needs no parser to find it: it is one text (RFC 2045 s5.2).
    """
    defects = list(fields.defects)
    first = facts.positions(fields, defects)
    found, cut = facts.read(fields, first, defects)
    own = {name: fields.loose[first[name]] for name in _STRUCTURAL if name in first}
    try:
        if fields.regular and not own and (octets.startswith(b"\r\n", end) or end == len(octets)):
            parts.take_text(octets[end + len(b"\r\n") :])
        else:
            parts.gather(parse_email_tree(octets, mode="lazy"), own)
    except _BoundExceededError as exc:
        return unreadable(exc.defect)
    truncated = ["headers"] if fields.truncated else []
    truncated += [f"message.{name}" for name in cut]
    truncated += [f"body.{name}" for name, body in (("text", parts.text), ("html", parts.html)) if body and body.truncated]
    return making.parsed(
        facts=found,
        headers=tuple(fields.headers),
        text=parts.text,
        html=parts.html,
        attachments=tuple(parts.attachments),
        defects=tuple((defects + parts.defects)[:DEFECTS_MAX]),
        parts_seen=parts.seen,
        truncated=tuple(truncated),
    )


class _Parts:
    """The parts of one message, gathered in document order.

    The first ``text/plain`` and the first ``text/html`` that are neither named nor marked as attachments are the
    bodies; every other leaf is an attachment, further texts included, so that nothing is lost or mixed.
    """

    def __init__(self, inline_max_octets: int) -> None:
        self._own: Mapping[str, str] = {}
        self._inline_left = inline_max_octets
        self.text: Text | None = None
        self.html: Text | None = None
        self.attachments: list[Attachment] = []
        self.defects: list[Defect] = []
        self.seen = 0

    def take_text(self, octets: bytes) -> None:
        """The message is one text of *octets*."""
        self.seen = 1
        self.text = self._body(octets, None, "1")

    def gather(self, root: PyLazyMimePart, own: Mapping[str, str]) -> None:
        """Go through the tree without recursion. *own* are the message's structural fields, by lower-case name.

        Raises _BoundExceededError past a bound, DecodeError for octets that do not decode.
        """
        if not _is_container(root):
            self.seen = 1
            self._own = own
            self._leaf(root, "1", own)
            return
        if not root.children:
            raise _BoundExceededError("boundary.missing", "no part found")
        self.seen = 1
        for node, part_id in self._leaves(root):
            self._leaf(node, part_id, {name.lower(): values[0] for name, values in node.headers.items()})

    def _leaves(self, root: PyLazyMimePart) -> Iterator[tuple[PyLazyMimePart, str]]:
        """Yield every leaf with its number as IMAP counts (RFC 9051 s6.4.5)."""
        pending = [(root, "")]
        while pending:
            node, part_id = pending.pop()
            if not _is_container(node):
                yield node, part_id
                continue
            children: list[PyLazyMimePart] = node.children
            self.seen += len(children)
            if self.seen > PARTS_MAX:
                raise _BoundExceededError("mime.parts", "over 1,000 parts")
            if part_id.count(".") + 1 >= DEPTH_MAX:
                raise _BoundExceededError("mime.depth", "over 32 levels")
            if not children:
                self.defects.append(Defect("boundary.missing", part_id, "no part found"))
            prefix = f"{part_id}." if part_id else ""
            numbered: list[tuple[PyLazyMimePart, str]] = [(child, f"{prefix}{number}") for number, child in enumerate(children, 1)]
            pending.extend(reversed(numbered))

    def _leaf(self, node: PyLazyMimePart, part_id: str, own: Mapping[str, str]) -> None:
        content_type = headers.parameters_of(own.get("content-type", ""))
        disposition = headers.parameters_of(own.get("content-disposition", ""))
        kind = facts.media_type(node.content_type)
        filename = self._filename(disposition, content_type, part_id)
        octets = self._content(node, part_id, own)
        if kind in ("text/plain", "text/html") and filename is None and disposition.value != "attachment":
            if kind == "text/plain" and self.text is None:
                self.text = self._body(octets, content_type.parameters.get("charset"), part_id)
                return
            if kind == "text/html" and self.html is None:
                self.html = self._body(octets, content_type.parameters.get("charset"), part_id)
                return
        content_id = charsets.scrub_line(node.content_id or "").strip() or None
        attachment = Attachment(part_id, filename, kind, _DISPOSITIONS.get(disposition.value), content_id, None, None, None, None)
        self.attachments.append(self._filled(attachment, octets))

    def _content(self, node: PyLazyMimePart, part_id: str, own: Mapping[str, str]) -> bytes:
        """Return the octets of a leaf, transfer encoding undone."""
        encoding = own.get("content-transfer-encoding")
        if encoding is not None and _encoding(encoding) not in _ENCODINGS:
            self.defects.append(Defect("encoding.unknown", part_id, "transfer encoding"))
        return node.content or b""

    def _filename(self, disposition: headers.Parameters, content_type: headers.Parameters, part_id: str) -> str | None:
        name = disposition.parameters.get("filename") or content_type.parameters.get("name")
        if not name:
            return None
        if "=?" in name:
            found: list[Defect] = []
            name, _ = headers.decode_words(name, found)
            self.defects.extend(defect._replace(part_id=part_id) for defect in found)
        return charsets.scrub_line(name).strip()[:FILENAME_MAX_CHARACTERS] or None

    def _body(self, octets: bytes, declared: str | None, part_id: str) -> Text:
        decoded = charsets.decode(octets, declared)
        if decoded.unknown:
            self.defects.append(Defect("charset.unknown", part_id, "body"))
        elif decoded.lossy:
            self.defects.append(Defect("charset.mismatch", part_id, "body"))
        whole = decoded.text.removeprefix("\ufeff")
        clean = charsets.scrub_body(whole[:TEXT_MAX_OCTETS])
        scrubbed = clean != whole[:TEXT_MAX_OCTETS]
        if scrubbed:
            self.defects.append(Defect("text.control", part_id, "body"))
        text = clean if clean.isascii() else clean.encode()[:TEXT_MAX_OCTETS].decode("utf-8", "ignore")
        label = charsets.scrub_line(declared[: charsets.LABEL_OCTETS_MAX]) if declared else None
        return making.text(text, label, decoded.used, lossy=decoded.lossy or scrubbed, truncated=len(text) < len(whole))

    def _filled(self, attachment: Attachment, octets: bytes) -> Attachment:
        """Return *attachment* with size and hash, and with its octets when there is room for them."""
        encoded_octets = (len(octets) + 2) // 3 * 4
        fits = encoded_octets <= self._inline_left
        if fits:
            self._inline_left -= encoded_octets
        return attachment._replace(
            size_octets=len(octets),
            sha256=sha256(octets).hexdigest(),
            content=octets if fits else None,
            reason=None if fits else "too_large",
        )


class _LenientParts(_Parts):
    """As ``_Parts`` for a message whose transfer encodings were disguised: they are undone here."""

    def _content(self, node: PyLazyMimePart, part_id: str, own: Mapping[str, str]) -> bytes:
        octets = _DISGUISED.sub(_disguise, node.content or b"")
        encoding = _encoding(own.get("content-xransfer-encoding") or self._own_encoding(own))
        if encoding == "base64":
            octets, whole = headers.base64_of(octets)
            if not whole:
                self.defects.append(Defect("base64.invalid", part_id, "content"))
        elif encoding == "quoted-printable":
            octets = a2b_qp(octets)
        elif encoding not in _ENCODINGS:
            self.defects.append(Defect("encoding.unknown", part_id, "transfer encoding"))
        return octets

    def _own_encoding(self, own: Mapping[str, str]) -> str:
        """Return the encoding of a message that is one part: its fields were read from the octets before the disguise."""
        return own.get("content-transfer-encoding", "") if own is self._own else ""


_ENCODINGS = frozenset(("", "7bit", "8bit", "binary", "base64", "quoted-printable"))
_DISPOSITIONS = {"attachment": "attachment", "inline": "inline"}


def _encoding(text: str) -> str:
    return text.partition(";")[0].strip(" \t").lower()


def _is_container(node: PyLazyMimePart) -> bool:
    return node.encoded_size is None
