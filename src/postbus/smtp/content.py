"""Message content as it arrives: where it ends, its transparency dots, what is wrong with it.

There are two framings, and one measure for both (``Measured``): ``DotBody`` is that of DATA, ``CountBody`` that of BDAT. The first finds
its end itself, so ``feed`` tells what stands behind it; the second is fed as many octets as the command has announced, and no more.

DATA states (RFC 5321 s4.1.1.4, s4.5.2)
---------------------------------------
The end is CR LF . CR LF and nothing like it. The only state is how much of that sequence stands at the end of what was received:
none, CR, CR LF, CR LF dot, CR LF dot CR. Those octets are held back, so that every other octet is content beyond doubt. The 354
counts as a line end: a message may begin in state CR LF, so ``.`` CR LF at once is an empty message. One dot at the start of a
line is removed, whatever follows it.

A bare CR, a bare LF or a NUL ends nothing and hides nothing: the message is read to its real end and then refused, or taken and
counted (``Offer.stray``). See CVE-2023-51764 and its family for what becomes of servers that differ.

BDAT states (RFC 3030 s2)
-------------------------
A message is a series of chunks, each of as many octets as its command says; the last one says so. Nothing in them is looked for: dots,
bare line ends and NULs are what they are (BINARYMIME means them), so they are counted as defects and refused by nobody. Chunks part
anywhere: a CR that ends one is held back until it is known whether LF begins the next. A chunk that nobody wants (``SkippedChunk``)
is still counted to its end: what follows it are commands, what is in it never.

Memory: nothing is kept but numbers and four octets. Speed: no loop sees octets one by one; the loops below run once per
thousand octets, or per overlong line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from postbus.smtp import replies
from postbus.smtp.events import NO_DEFECTS, Chunk, Signal
from postbus.smtp.framing import Lines
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits, Offer

END = b"\r\n.\r\n"
_OVERRUN_MIN_OCTETS = 1_048_576
_NEED_DATA: Final = Signal.NEED_DATA


class Measured:
    """What is counted in content, whatever frames it.

    Attributes:
        size_octets: content so far, dots removed.
    """

    __slots__ = ("_bare_cr", "_bare_lf", "_limits", "_line_octets", "_long_lines", "_longest_octets", "_nul", "_size_max",
                 "size_octets")  # fmt: skip

    def __init__(self, offer: Offer, limits: Limits) -> None:
        self.size_octets = 0
        self._bare_cr = self._bare_lf = self._nul = self._long_lines = 0
        self._line_octets = self._longest_octets = 0  # the unfinished line; the longest so far
        self._limits = limits
        self._size_max = offer.size_octets

    def _measure(self, piece: bytes) -> None:
        """Count what is tolerable and what is not in *piece*."""
        self.size_octets += len(piece)
        rest = b"".join(piece.split(b"\r\n"))  # a third of what counting line ends takes, and of every pattern we tried
        if b"\r" in rest or b"\n" in rest:
            self._bare_cr += rest.count(b"\r")
            self._bare_lf += rest.count(b"\n")
        if b"\0" in rest:
            self._nul += rest.count(b"\0")
        self._measure_lines(piece)

    def _measure_lines(self, piece: bytes) -> None:
        """Find lines over the flagged length by hopping to the last line end within each thousand octets."""
        flag = self._limits.text_line_flag_octets
        size = len(piece)
        start = -self._line_octets  # where the current line begins, perhaps in a piece before
        while size - start > flag:
            at = piece.rfind(b"\r\n", max(start, 0), max(start + flag, 0))
            if at < 0:
                at = piece.find(b"\r\n", max(start, 0))
                if at < 0:
                    break
                self._long_lines += 1
                self._longest_octets = max(self._longest_octets, at + 2 - start)
            start = at + 2
        last = piece.rfind(b"\r\n", max(start, 0))
        self._line_octets = size - (last + 2 if last >= 0 else start)
        self._longest_octets = max(self._longest_octets, self._line_octets)

    @property
    def overrun(self) -> bool:
        """Whether the content is so far over the limit that reading on serves nobody."""
        size_max = self._size_max
        return size_max is not None and self.size_octets > size_max and self.size_octets > _cut_octets(size_max, self._limits)

    @property
    def defects(self) -> Mapping[str, int]:
        """What was found so far, kind to count."""
        if not (self._bare_cr or self._bare_lf or self._nul or self._long_lines):
            return NO_DEFECTS
        counts = {"bare-cr": self._bare_cr, "bare-lf": self._bare_lf, "nul": self._nul, "long-line": self._long_lines}
        return {kind: count for kind, count in counts.items() if count}


class DotBody(Measured):
    """Content framed by the final dot; see the module's docstring."""

    __slots__ = ("_ended", "_held", "_reject_stray", "_virtual")

    def __init__(self, offer: Offer, limits: Limits) -> None:
        super().__init__(offer, limits)
        self._ended = False
        self._held = b"\r\n"  # the 354 counts as a line end
        self._virtual = 2  # octets of _held that were never sent
        self._reject_stray = offer.stray == "reject"

    def read(self, lines: Lines) -> Chunk | Signal | None:
        """Take from *lines* what is content, and return a piece of it; ``None``: the message is over, or ``overrun``."""
        if self._ended:
            return None
        data = lines.rest()
        if not data:
            return _NEED_DATA
        piece, rest = self.feed(data)
        if self.overrun:
            return None
        if rest is not None:
            lines.add(rest)
            self._ended = True
        if piece and self.refusal is None:  # the pieces of a message that will be refused need not be kept
            return Chunk(piece)
        return _NEED_DATA if rest is None else None

    def feed(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Take *octets* and return the piece of content they complete, and what follows the end of the message or ``None``."""
        work = self._held + octets
        rest: bytes | None = None
        dot, end = _first_dot(work) if b"." in octets or len(self._held) > 2 else (-1, -1)
        if end >= 0:
            rest = work[end + 5 :]
            stop = end + 2
            self._held = b""
        else:
            stop = len(work) - _begun(work)
            self._held = work[stop:]
        virtual = self._virtual
        if stop < virtual:  # nothing but the line end that was never sent, and perhaps a dot
            return b"", None
        self._virtual = 0
        dotted = 0 <= dot < stop and dot != end
        piece = work[:stop].replace(b"\r\n.", b"\r\n")[virtual:] if dotted else work[virtual:stop]
        if piece:
            self._measure(piece)
        return piece, rest

    @property
    def refusal(self) -> Reply | None:
        """Why the message is refused at its end, as far as known by now."""
        if self._size_max is not None and self.size_octets > self._size_max:
            return replies.TOO_BIG
        if self._reject_stray and (self._bare_cr or self._bare_lf or self._nul):
            return replies.STRAY_LINE_ENDING
        if self._longest_octets > self._limits.text_line_octets:
            return replies.TEXT_LINE_TOO_LONG
        return None


class CountBody(Measured):
    """Content framed by counts, of all chunks of a message; see the module's docstring.

    Attributes:
        left_octets: still to come of the current chunk.
        last: it is the message's last one.
        small: chunks so far of fewer than ``Limits.chunk_small_octets``, the last not counted.
        refusal: why the message is refused, known when a chunk is announced.
        reply: what the shell has answered; sent when the chunk is whole, unless it is the last.
    """

    __slots__ = ("_held_cr", "last", "left_octets", "refusal", "reply", "small")

    def __init__(self, offer: Offer, limits: Limits) -> None:
        super().__init__(offer, limits)
        self._held_cr = False
        self.left_octets = self.small = 0
        self.last = False
        self.refusal: Reply | None = None
        self.reply = replies.CHUNK_OK

    def begin(self, size_octets: int, reply: Reply, *, last: bool) -> None:
        """Expect a chunk of *size_octets*, which *reply* will answer."""
        self.left_octets = size_octets
        self.last = last
        self.reply = reply
        if self._size_max is not None and self.size_octets + self._held_cr + size_octets > self._size_max:
            self.refusal = replies.TOO_BIG
        self.small += size_octets < self._limits.chunk_small_octets and not last

    def read(self, lines: Lines) -> Chunk | Signal | None:
        """Take from *lines* what is content, and return a piece of it; ``None``: the chunk is over, or ``overrun``."""
        piece = self.feed(lines.some(self.left_octets))
        if self.overrun:
            return None
        if piece and self.refusal is None:
            return Chunk(piece)
        return _NEED_DATA if self.left_octets else None

    def feed(self, octets: bytes) -> bytes:
        """Take *octets*, at most ``left_octets``, and return the piece of content they complete."""
        self.left_octets -= len(octets)
        if self._held_cr:
            octets = b"\r" + octets
        self._held_cr = octets.endswith(b"\r") and not (self.last and not self.left_octets)
        piece = octets[:-1] if self._held_cr else octets
        if piece:
            if self.refusal is not None:
                self.size_octets += len(piece)
            else:
                self._measure(piece)
        return piece


class SkippedChunk:
    """A chunk that nobody wants: counted to its end, then answered with *reply*. Attributes and methods as ``CountBody``'s."""

    __slots__ = ("_cut_octets", "_size_octets", "last", "left_octets", "reply")

    def __init__(self, offer: Offer, limits: Limits, size_octets: int, reply: Reply, *, last: bool) -> None:
        self.left_octets = size_octets
        self.last = last
        self.reply = reply
        self._size_octets = 0
        size = offer.size_octets
        self._cut_octets = None if size is None else _cut_octets(size, limits)

    def read(self, lines: Lines) -> Signal | None:
        """Take from *lines* what belongs to the chunk, and drop it; ``None``: it is over, or ``overrun``."""
        octets = lines.some(self.left_octets)
        self.left_octets -= len(octets)
        self._size_octets += len(octets)
        return None if self.overrun or not self.left_octets else _NEED_DATA

    @property
    def overrun(self) -> bool:
        """Whether so much was thrown away that reading on serves nobody."""
        return self._cut_octets is not None and self._size_octets > self._cut_octets


def _cut_octets(size_octets: int, limits: Limits) -> int:
    """Return after how many octets of one message, or one chunk, the peer is hung up on where *size_octets* are allowed."""
    return max(size_octets * limits.overrun_factor, size_octets + _OVERRUN_MIN_OCTETS)


def _first_dot(work: bytes) -> tuple[int, int]:
    """Return where the first dot at a line start is (its CRLF, that is), and where the end of the message; -1 for none.

    Searching backwards takes a third of the time in CPython, and mostly finds the end, or one dot, or nothing.
    """
    dot = work.rfind(b"\r\n.")
    if dot < 0:
        return -1, -1
    if work.rfind(b"\r\n.", 0, dot) < 0:
        return dot, dot if work.startswith(END, dot) else -1
    dot = work.find(b"\r\n.")
    return dot, work.find(END, dot)


def _begun(work: bytes) -> int:
    """Return how many octets at the end of *work* may be the beginning of the end."""
    if not work or work[-1] not in b"\r\n.":
        return 0
    return next((length for length in (4, 3, 2, 1) if work.endswith(END[:length])), 0)
