"""Bounded lines: commands cut out of the received octets at CRLF, and nowhere else.

A bare LF or CR ends nothing; it stays in the line, which is then refused for its control character. A command that a front
end took for one line must not become two here.

Memory: while no CRLF is in sight ``shrink`` keeps at most ``DISCARD_AFTER_OCTETS``; past that a line can only be refused, so its
octets are counted and dropped, but for the first few, which say what it would have been. What a line becomes never depends on how it
arrived.
"""

from __future__ import annotations

DISCARD_AFTER_OCTETS = 12_800  # more than any verb's limit with its allowance, of which AUTH's is the largest
HEAD_OCTETS = 5  # a verb and the space behind it


class Lines:
    """The octets received and not yet understood, and the lines in them.

    ``take`` cuts lines off the front; ``rest`` and ``some`` give what stands behind them to a reader of content. Reading moves a position,
    so a pipelined burst is not copied once per command.
    """

    __slots__ = ("_buffer", "_dropped", "_endless_octets", "_head", "_position")

    def __init__(self, endless_octets: int) -> None:
        self._buffer = b""
        self._position = 0
        self._dropped = 0  # octets of the current line already discarded
        self._head = b""  # how the line began of which something was discarded last
        self._endless_octets = endless_octets

    def __len__(self) -> int:
        """Octets held."""
        return len(self._buffer) - self._position

    def add(self, data: bytes) -> None:
        """Append *data*; what is already read is let go."""
        if self._position == len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._position :] + data
        self._position = 0

    def take(self) -> bytes | None:
        """Return the next line without its CRLF, or ``None``.

        A line of which something was dropped comes as its last octets; ``overlong`` tells before the next ``take``.
        """
        start = self._position
        if start == len(self._buffer):
            return None
        end = self._buffer.find(b"\r\n", start)
        if end < 0:
            return None
        self._position = end + 2
        return self._buffer[start:end]

    def shrink(self) -> None:
        """Keep an unfinished line small: once it can only be refused, its octets are counted, not kept, but for the last.

        To be called whenever ``take`` has found none.
        """
        held = len(self._buffer) - self._position
        if held > DISCARD_AFTER_OCTETS:
            if not self._dropped:
                self._head = self._buffer[self._position : self._position + HEAD_OCTETS]
            self._dropped += held - 1
            self._buffer = self._buffer[-1:]
            self._position = 0

    def finish(self, line: bytes) -> int:
        """Return the whole length of *line*, just taken, CRLF and dropped octets included."""
        length = self._dropped + len(line) + 2
        self._dropped = 0
        return length

    def head(self, line: bytes, length: int) -> bytes:
        """Return the first ``HEAD_OCTETS`` octets of the *line* just finished, whole *length* octets long."""
        return line[:HEAD_OCTETS] if length == len(line) + 2 else self._head

    @property
    def endless(self) -> bool:
        """Whether the unfinished line in front is past the length at which the peer is hung up on."""
        return self._dropped + len(self) > self._endless_octets

    def starts_with(self, prefix: bytes) -> bool:
        """Whether the current line begins with *prefix*."""
        return not self._dropped and self._buffer.startswith(prefix, self._position)

    def rest(self) -> bytes:
        """Take all unread octets."""
        data = self._buffer[self._position :] if self._position else self._buffer
        self._buffer = b""
        self._position = 0
        return data

    def some(self, most_octets: int) -> bytes:
        """Take at most *most_octets*. What stands behind them stays where it is: small chunks must not move a whole segment each."""
        end = self._position + most_octets
        if end >= len(self._buffer):
            return self.rest()
        data = self._buffer[self._position : end]
        self._position = end
        return data

    def clear(self) -> None:
        """Forget everything."""
        self.rest()
        self._dropped = 0
