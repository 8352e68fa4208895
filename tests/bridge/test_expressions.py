"""Regular expressions in routes: what is taken, what is refused, and that the worst case is what was reckoned."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.bridge.expressions import ADDRESS_MAX_CHARACTERS, DEPTH_MAX, STEPS_MAX, ExpressionError, compile_expression, steps

SAFE = [
    r"^(?P<team>[a-z]+)@example\.org$",
    r"(?:[a-z0-9]+\.)*example\.org",
    r"(?:\.[a-z]+)*x",
    r"(a|b)*@x",
    r"(sales|support)-[a-z]+@x",
    r"(\w+)\.(\w+)@(\w+)\.example\.org",
    r"(?P<a>[^@]+)\+(?P<tag>[^@]+)@example\.org",
    r"[^-@]*-[^@]*@.*",
    r"(?:[a-z]++\.)*x",
    r"a{,3}b{2}c{1,}d{1,2}",
    r"[]a]+[^]b]\d\D\w\W\s\S\.\-@",
    r"\A(?:x|)y\Z",
    r"(?:ab){3}",
    r"a{,}b{x",
    r"[a-]x?",
    r"(?:[a-z]+x?)?y",
    r"[\d\-a-c]+@x",
    r"é@x",
    "",
]

RISKY = [
    pytest.param(r"([a-z]+)+@x", "([a-z]+)+", id="a repeat of a repeat"),
    pytest.param(r"(a|a)*b", "(a|a)*", id="two ways for one letter"),
    pytest.param(r"(?:ab|ac)*x", "(?:ab|ac)*", id="branches that start alike"),
    pytest.param(r"(?:a+|b)*c", "(?:a+|b)*", id="a repeat in a repeated branch"),
    pytest.param(r"(?:a*)*", "(?:a*)*", id="a repeat of nothing"),
    pytest.param(r"(x+x+)+y", "(x+x+)+", id="the textbook's"),
    pytest.param(r"(a?){25}a{25}", "(a?){25}", id="a counted repeat of an option"),
    pytest.param("a?" * 30 + "a" * 30, "", id="thirty options"),
    pytest.param(r".*-.*@.*", ".*-.*@.*", id="three that take everything"),
    pytest.param(r"[a-z]*[a-z]*-[0-9]*[0-9]*-[a-z]*[a-z]*@", "", id="pairs multiply across separators"),
    pytest.param(r"(?:(a+)+b)++", "(a+)+", id="inside a possessive repeat"),
    pytest.param(r"(?:.*.*.*b)?+x", "", id="three inside a possessive option"),
    pytest.param(r"(?:.*.*.*b|x)y", "", id="three inside a branch"),
]


@pytest.mark.parametrize("text", SAFE)
def test_safe_expressions_compile(text: str) -> None:
    """What stays within the bound is compiled as it is."""
    assert text == compile_expression(text).pattern
    assert steps(text) <= STEPS_MAX


@pytest.mark.parametrize(("text", "blamed"), RISKY)
def test_risky_expressions_are_refused(text: str, blamed: str) -> None:
    """What could keep the process busy is refused, and the part to blame is named."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert f"keep {blamed}" in caught.value.message
    assert "[a-z]++" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(r"(?=a)b", "(?=a is not available in a route", id="look ahead"),
        pytest.param(r"(?<!a)b", "(?<! is not available in a route", id="look behind"),
        pytest.param(r"(?i)a", "(?i) is not available in a route", id="flags"),
        pytest.param(r"(a)\1", r"\1 is not available in a route", id="back-reference"),
        pytest.param(r"(?P<a>b)(?P=a)", "(?P= is not available in a route", id="named back-reference"),
        pytest.param(r"\bx", r"\b is not available in a route", id="word boundary"),
        pytest.param(r"Sales@x", "S fits no address, since they are compared in lower case", id="upper-case letter"),
        pytest.param(r"[A-Z]+@x", "[A-Z] fits no address, since they are compared in lower case", id="upper-case class"),
        pytest.param("(?:" * (DEPTH_MAX + 1) + "a" + ")" * (DEPTH_MAX + 1), "groups are nested more than 8 deep", id="nesting"),
        pytest.param(r"[a-z", "not a regular expression: unterminated character set at position 0", id="unclosed class"),
        pytest.param(r"a**", "not a regular expression: multiple repeat at position", id="double repeat"),
    ],
)
def test_other_refusals(text: str, message: str) -> None:
    """What routes do not have is refused by name."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert caught.value.message.startswith(message)


ATOMS = st.sampled_from(["a", "b", "[ab]", ".", "[^a]", "-", "@"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    marks = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*+", "+?"])
    return st.one_of(
        st.tuples(inner, marks).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda branches: f"(?:{'|'.join(branches)})"),
    )


@given(text=st.recursive(ATOMS, _grown, max_leaves=6), bait=st.sampled_from(["a", "b", "ab", "a-", "a@", "-"]))
def test_what_is_taken_is_fast_on_hostile_addresses(text: str, bait: str) -> None:
    """No expression that is taken needs long for an address made of repeats that almost fit."""
    try:
        compiled = compile_expression(text)
    except ExpressionError:
        return
    address = (bait * ADDRESS_MAX_CHARACTERS)[: ADDRESS_MAX_CHARACTERS - 1] + "\x01"
    started = time.process_time()
    compiled.fullmatch(address)
    assert time.process_time() - started < 1.0


def test_the_refused_ones_would_have_hurt() -> None:
    """The refusal is not for show: the textbook's expression doubles its time with each letter."""
    times = []
    for letters in (16, 20):
        started = time.process_time()
        re.fullmatch(r"(x+x+)+y", "x" * letters)
        times.append(time.process_time() - started)
    assert times[1] > 4 * times[0]
