"""Regular expressions in routes: a dialect whose worst case is known before the first address comes.

An address is chosen by a stranger, and Python's engine backtracks: ``([a-z]+)+@`` needs hours for a 40-letter address, and
nothing can interrupt it. A cap on the address's length does not help against that (2^40), so expressions are read by a small
parser first, which knows only what a recipient needs (no look-around, no back-references, no flags; RE2 draws the same line)
and works out how many steps the worst address can cost. What may cost more than STEPS_MAX is refused when the configuration
is read, with the part to blame. What remains is run by ``re``.

How the worst case is found: each repeat that can end at several places multiplies the ways to match what stands before the
next character that none of the open repeats can take; there, all but one of them are settled. ``[a-z]+-[a-z]+@`` has one way,
``[a-z-]+-[a-z]+@`` as many as the address has characters, and a repeat of something that itself has several ways, no bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce
from math import prod

ADDRESS_MAX_CHARACTERS = 320
"""64 + 1 + 255 (RFC 5321 s4.5.3.1); a longer address fits no expression."""

STEPS_MAX = 250_000
"""A few milliseconds. Two repeats that take the same text cost 320 x 320 steps, three would cost 33 million, half a second."""

DEPTH_MAX = 8
"""Groups inside groups. Judging a repeat looks at its inside twice, so this bounds the judging, too."""

_OTHER = 128
_ALL = frozenset(range(_OTHER + 1))
_UPPER = frozenset(range(ord("A"), ord("Z") + 1))
_DIGITS = frozenset(map(ord, "0123456789"))
_WORD = _DIGITS | _UPPER | frozenset(map(ord, "abcdefghijklmnopqrstuvwxyz_"))
_SPACE = frozenset(map(ord, " \t\n\r\f\v"))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE, "D": _ALL - _DIGITS, "W": _ALL - _WORD, "S": _ALL - _SPACE}
_ANCHORS = {"A", "Z"}
_GROUP = re.compile(r"\?(?::|P<([A-Za-z_][A-Za-z0-9_]*)>)")
_BOUNDS = re.compile(r"\{([0-9]{1,4})?(,)?([0-9]{1,4})?\}")

Chars = frozenset[int]


class ExpressionError(ValueError):
    """The expression cannot be used: ``args`` are what is wrong and what would be right."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message, self.remedy = message, remedy


@dataclass(frozen=True, slots=True)
class _One:
    """One character out of *chars*, always there."""

    chars: Chars


@dataclass(frozen=True, slots=True)
class _Repeat:
    item: _Node
    least: int
    most: int
    possessive: bool
    text: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: tuple[_Node, ...]


_Node = _One | _Repeat | _Sequence | _Choice


def compile_expression(text: str) -> re.Pattern[str]:
    """Return *text* compiled, to be used with ``fullmatch`` on a normalised address of at most ADDRESS_MAX_CHARACTERS.

    Raises:
        ExpressionError: it is no expression, uses what routes do not have, or could cost more than STEPS_MAX.
    """
    try:
        compiled = re.compile(text, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ExpressionError(f"not a regular expression: {error}", "see the manual of Python's re module") from None
    if steps(text) > STEPS_MAX:
        raise _too_costly(text)
    return compiled


def steps(text: str) -> int:
    """Return about how many steps the worst address costs *text*, which ``re`` accepts."""
    return reduce(_feed, [_Reader(text).read()], _State()).closed().peak


def _too_costly(part: str) -> ExpressionError:
    return ExpressionError(
        f"a hostile address could keep {part} busy for too long",
        "let repeats that follow each other take different characters, as in [^-@]+ for .+, or make one possessive, as in [a-z]++",
    )


class _Reader:
    """Reads an expression that ``re`` has accepted; refuses what routes do not have."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def read(self) -> _Node:
        return self._choice()

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _next(self) -> str:
        self.at += 1
        return self.text[self.at - 1]

    def _choice(self) -> _Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._next()
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Choice(tuple(branches))

    def _sequence(self) -> _Node:
        items: list[_Node] = []
        while self._peek() not in {"", "|", ")"}:
            start = self.at
            item = self._item()
            if isinstance(item, _One) and item.chars and item.chars <= _UPPER:
                letter = self.text[start : self.at]
                raise ExpressionError(f"{letter} fits no address, since they are compared in lower case", f"write {letter.lower()}")
            items.append(self._repeated(item, start))
        return _Sequence(tuple(items))

    def _item(self) -> _Node:
        match self._next():
            case "(":
                return self._group()
            case "[":
                return _One(self._set())
            case ".":
                return _One(_ALL)
            case "^" | "$":
                return _Sequence(())
            case "\\":
                sign = self._next()
                return _Sequence(()) if sign in _ANCHORS else _One(self._escape(sign))
            case sign:
                return _One(_char(sign))

    def _group(self) -> _Node:
        if self._peek() == "?":
            kind = _GROUP.match(self.text, self.at)
            if kind is None:
                shown = self.text[self.at - 1 : self.at + 3]
                raise ExpressionError(f"{shown} is not available in a route", "use plain groups, (?:...) and (?P<name>...)")
            self.at = kind.end()
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise ExpressionError(f"groups are nested more than {DEPTH_MAX} deep", "write a simpler expression, or several patterns")
        inner = self._choice()
        self._next()
        self.depth -= 1
        return inner

    def _escape(self, sign: str) -> Chars:
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign.isalnum():
            raise ExpressionError(f"\\{sign} is not available in a route", "use \\d, \\w, \\s, or the character itself")
        return _char(sign)

    def _set(self) -> Chars:
        negated = self._peek() == "^"
        self.at += negated
        found: set[int] = set()
        first = True
        while self._peek() != "]" or first:
            first = False
            low = self._member()
            if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self._next()
                found.update(range(min(low), max(self._member()) + 1))
            found |= low
        self._next()
        return _ALL - found if negated else frozenset(found)

    def _member(self) -> Chars:
        sign = self._next()
        return self._escape(self._next()) if sign == "\\" else _char(sign)

    def _repeated(self, item: _Node, start: int) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return item
        possessive = self._peek() == "+"
        self.at += self._peek() in {"?", "+"} and self._peek() != ""
        return _Repeat(item, *bounds, possessive, self.text[start : self.at])

    def _bounds(self) -> tuple[int, int] | None:
        sign = self._peek()
        simple = {"*": (0, ADDRESS_MAX_CHARACTERS), "+": (1, ADDRESS_MAX_CHARACTERS), "?": (0, 1)}.get(sign or "none")
        if simple:
            self._next()
            return simple
        found = _BOUNDS.match(self.text, self.at) if sign == "{" else None
        if found is None or not (found[1] or found[3]):
            return None
        self.at = found.end()
        least = min(int(found[1] or 0), ADDRESS_MAX_CHARACTERS)
        most = int(found[3]) if found[3] else ADDRESS_MAX_CHARACTERS if found[2] else least
        return least, min(most, ADDRESS_MAX_CHARACTERS)


def _char(sign: str) -> Chars:
    return frozenset({min(ord(sign), _OTHER)})


def _chars(node: _Node) -> Chars:
    """Return every character *node* can take."""
    match node:
        case _One(chars):
            return chars
        case _Repeat(item):
            return _chars(item)
        case _Sequence(inner) | _Choice(inner):
            return frozenset().union(*map(_chars, inner))


def _least(node: _Node) -> int:
    """Return how many characters *node* takes at least."""
    match node:
        case _One():
            return 1
        case _Repeat(item, least):
            return least * _least(item)
        case _Sequence(items):
            return sum(map(_least, items))
        case _Choice(branches):
            return min(map(_least, branches))


def _first(node: _Node) -> Chars:
    """Return every character *node* can start with; of what may be empty, also what may follow inside it."""
    if not isinstance(node, _Sequence):
        return frozenset().union(*map(_first, node.branches)) if isinstance(node, _Choice) else _chars(node)
    found: Chars = frozenset()
    for item in node.items:
        found |= _first(item)
        if _least(item):
            break
    return found


def _fixed(node: _Node) -> bool:
    """Say whether *node* can match at a place in one way only, whatever comes."""
    match node:
        case _One():
            return True
        case _Repeat(item, least, most, possessive):
            return possessive or (least == most and _fixed(item))
        case _Sequence(items):
            return all(map(_fixed, items))
        case _Choice(branches):
            firsts = [_first(branch) for branch in branches]
            apart = sum(map(len, firsts)) == len(frozenset().union(*firsts))
            return apart and all(_least(branch) and _fixed(branch) for branch in branches)


@dataclass(frozen=True, slots=True)
class _State:
    """How many ways lead to a place in the expression.

    Attributes:
        ways: settled ways to get before the open repeats.
        open: the repeats nothing has settled yet: what they can take, and at how many places they can end.
        peak: most steps met so far.
    """

    ways: int = 1
    open: tuple[tuple[Chars, int], ...] = ()
    peak: int = 1

    def closed(self) -> _State:
        """Return the state behind a character none of the open repeats can take: it settles all but one of them."""
        counts = [count for _, count in self.open]
        total = prod(counts)
        return _State(self.ways * (total // max(counts, default=1)), (), max(self.peak, self.ways * total))

    def met(self, first: Chars) -> _State:
        """Return the state behind something that is always there and starts with *first*."""
        return self.closed() if all(first.isdisjoint(chars) for chars, _ in self.open) else self

    def spent(self, steps: int) -> _State:
        """Return the state behind something that took *steps* and is settled."""
        return _State(self.ways, self.open, max(self.peak, self.ways * prod(count for _, count in self.open) * steps))

    def opened(self, chars: Chars, count: int) -> _State:
        """Return the state behind something that can end at *count* places."""
        return _State(self.ways, (*self.open, (chars, count)), self.peak)


def _feed(state: _State, node: _Node) -> _State:
    """Return the state behind *node*."""
    if isinstance(node, _Sequence):
        return reduce(_feed, node.items, state)
    state = state.met(_first(node)) if _least(node) else state
    match node:
        case _One():
            return state
        case _Choice(branches):
            costs = [_cost(branch) for branch in branches]
            return state.spent(max(costs)) if _fixed(node) else state.opened(_chars(node), sum(costs))
        case _Repeat():
            return _feed_repeat(state, node)


def _feed_repeat(state: _State, node: _Repeat) -> _State:
    if node.possessive:
        return state.spent(_cost(node.item))  # once left it is not entered again, but one round can still be tried in many ways
    if node.most > 1 and _looped(node.item) > 1:
        raise _too_costly(node.text)
    if node.least == node.most:
        return reduce(_feed, [node.item] * min(node.least, 2), state)
    return state.opened(_chars(node), (node.most - node.least + 1) * (_cost(node.item) if node.most == 1 else 1))


def _looped(node: _Node) -> int:
    """Return the ways to match two rounds of *node*: more than one grow without bound in a repeat."""
    return reduce(_feed, [node, node], _State()).closed().ways


def _cost(node: _Node) -> int:
    """Return the steps *node* can take by itself: at least the number of ways it can end."""
    return _feed(_State(), node).closed().peak
