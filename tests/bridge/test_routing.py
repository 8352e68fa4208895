"""Which route takes a recipient."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.bridge.patterns import PatternError, compile_pattern, split_tag
from postbus.bridge.routing import Match, Router
from postbus.bridge.settings import RouteSettings
from postbus.event.cloudevents import message_max_octets

MIB = 1024 * 1024


@dataclass(frozen=True)
class FakeSink:
    """As much of a sink as a route must know."""

    event_max_octets: int = MIB
    octets: bool = True


SINKS = {"s": FakeSink(), "small": FakeSink(100_000), "json": FakeSink(2 * MIB, octets=False)}


def route(name: str, *match: str, **more: object) -> RouteSettings:
    """Return a route to the sink ``s``."""
    return RouteSettings.model_validate({"name": name, "match": match, "sinks": ["s"]} | more)


def matched(pattern: str, address: str, **more: object) -> Match | None:
    """Return what a table of one route says to *address*."""
    return Router([route("r", pattern, **more)], SINKS).match(address)


@pytest.mark.parametrize(
    ("pattern", "address"),
    [
        pytest.param("support@example.org", "support@example.org", id="exact"),
        pytest.param("Support@Example.ORG", "sUPPORT@eXAMPLE.org", id="case does not matter"),
        pytest.param("support@example.org", '"support"@example.org', id="needless quotes"),
        pytest.param('"two words"@example.org', '"Two Words"@example.org', id="needed quotes"),
        pytest.param("a@bücher.example", "a@xn--bcher-kva.example", id="pattern in U-labels"),
        pytest.param("a@xn--bcher-kva.example", "a@bücher.example", id="address in U-labels"),
        pytest.param("*@BÜCHER.example", "a@xn--bcher-kva.example", id="domain in U-labels"),
        pytest.param("x*@bücher.example", "xa@bücher.example", id="wildcard beside U-labels"),
        pytest.param("*@bücher.*.example", "xa@xn--bcher-kva.a.example", id="U-label beside a wildcard"),
        pytest.param("*@example.org", "anyone@example.org", id="domain"),
        pytest.param("*@example.org", '"a@b"@example.org', id="domain, local part with an at sign"),
        pytest.param("*@[192.0.2.1]", "a@[192.0.2.1]", id="address literal"),
        pytest.param("orders-*@*.example.org", "orders-17@eu.example.org", id="wildcards on both sides"),
        pytest.param("orders-*@*.example.org", "orders-@a.b.example.org", id="a wildcard takes nothing, and dots"),
        pytest.param("*-orders@example.org", "x-orders-orders@example.org", id="leading wildcard"),
        pytest.param("a*b*c@example.org", "abbcbc@example.org", id="wildcards inside"),
        pytest.param("*@*", "a@b", id="any address with a domain"),
        pytest.param("postmaster@*", "Postmaster@example.net", id="one name in any domain"),
        pytest.param("*@*.org", '"a@b.com"@example.org', id="wildcards split at the last at sign"),
        pytest.param("support+*@example.org", "support+4711@example.org", id="tag pattern"),
        pytest.param("support+vip@example.org", "support+VIP@example.org", id="exact with a tag"),
        pytest.param("/[a-z]+@example\\.org/", "Sales@Example.org", id="expression"),
        pytest.param("/^sales@example\\.org$/", "sales@example.org", id="expression with anchors"),
        pytest.param("*", "anyone@anywhere", id="everyone"),
        pytest.param("*", "Postmaster", id="everyone, the bare postmaster too"),
        pytest.param("postmaster", "POSTMASTER", id="bare postmaster"),
        pytest.param("postmaster@example.org", "Postmaster", id="the bare postmaster goes where one with a domain goes"),
        pytest.param("postmaster@*", "Postmaster", id="the bare postmaster goes where one with any domain goes"),
    ],
)
def test_pattern_takes(pattern: str, address: str) -> None:
    """The pattern takes the address, and the match says which pattern it was."""
    found = matched(pattern, address)
    assert found is not None
    assert pattern == found.pattern


@pytest.mark.parametrize(
    ("pattern", "address"),
    [
        pytest.param("support@example.org", "support@example.com", id="other domain"),
        pytest.param("support@example.org", "support+x@example.org", id="a tag without `tags: true`"),
        pytest.param("*@example.org", "a@sub.example.org", id="sub-domain"),
        pytest.param("*@*.example.org", "a@example.org", id="the domain itself"),
        pytest.param("*@*.example.org", "a@badexample.org", id="the dot is a dot"),
        pytest.param("*@example.org", "postmaster", id="no domain"),
        pytest.param("*@*", "postmaster", id="no domain, any domain wanted"),
        pytest.param("*@postmaster", "postmaster", id="the bare name is no domain"),
        pytest.param("a*@example.org", '"a@example.org"@evil.test', id="an address inside a local part"),
        pytest.param("*@*.org", '"a@x.org"@evil.test', id="a domain inside a local part"),
        pytest.param("a*b*c@example.org", "abcb@example.org", id="the end must fit"),
        pytest.param("a*a@example.org", "a@example.org", id="pieces do not overlap"),
        pytest.param("support+*@example.org", "support@example.org", id="tag wanted"),
        pytest.param("/[a-z]+@example\\.org/", "sales@example.org.evil.test", id="an expression must fit the whole"),
        pytest.param("/.*/", "a" * 310 + "@example.org", id="an expression fits no over-long address"),
        pytest.param("postmaster", "postmaster@example.org", id="the bare name alone"),
    ],
)
def test_pattern_does_not_take(pattern: str, address: str) -> None:
    """Nothing else is taken."""
    assert matched(pattern, address) is None


@pytest.mark.parametrize(
    ("pattern", "tags", "address", "tag"),
    [
        pytest.param("support@example.org", True, "support@example.org", None, id="none"),
        pytest.param("support@example.org", True, "support+4711@example.org", "4711", id="exact"),
        pytest.param("support@example.org", True, "support+a+b@example.org", "a+b", id="the first plus counts"),
        pytest.param("support@example.org", True, "support+@example.org", "", id="empty"),
        pytest.param("*@example.org", True, "any+x@example.org", "x", id="domain"),
        pytest.param("*@example.org", False, "any+x@example.org", None, id="domain, tags not wanted"),
        pytest.param("*", True, "any+x@example.org", "x", id="everyone"),
        pytest.param("s*t@example.org", True, "support+x@example.org", "x", id="wildcard, without the tag"),
        pytest.param("support+*@example.org", False, "support+x@example.org", "x", id="tag pattern"),
        pytest.param("support+*@example.org", True, "support+x@example.org", "x", id="tag pattern, tags wanted"),
        pytest.param("support+vip@example.org", False, "support+vip@example.org", "vip", id="exact with a tag"),
        pytest.param("/(?P<who>[a-z]+)\\+(?P<tag>.*)@x/", False, "a+b@x", "b", id="captured"),
        pytest.param("/[a-z]+\\+.*@x/", True, "a+b@x", None, id="an expression names its tag or has none"),
        pytest.param("*@example.org", True, "+x@example.org", None, id="nothing before the plus"),
        pytest.param("*@example.org", True, '"a b+c"@example.org', None, id="quoted"),
    ],
)
def test_tag(pattern: str, tags: bool, address: str, tag: str | None) -> None:
    """The tag is what follows the first plus, where the route looks at tags."""
    found = matched(pattern, address, tags=tags)
    assert found is not None
    assert tag == found.tag


def test_captures_are_the_named_groups_that_took_part() -> None:
    """A group that did not take part is not in the event."""
    found = matched(r"/(?P<team>[a-z]+)(?:-(?P<unit>[0-9]+))?@x/", "sales@x")
    assert found is not None
    assert {"team": "sales"} == found.captures


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("a@example.org", "exact", id="exact before its domain"),
        pytest.param("b@example.org", "wild", id="wildcard before the domain, by order"),
        pytest.param("c@example.org", "domain", id="domain"),
        pytest.param("c@x.example.org", "expression", id="expression before everyone"),
        pytest.param("z@elsewhere", "everyone", id="everyone"),
        pytest.param("late@example.org", "domain", id="an exact pattern behind its domain comes too late"),
        pytest.param("any@example.net", "first", id="the first of two equal patterns"),
    ],
)
def test_first_match_wins(address: str, expected: str) -> None:
    """The order of the list decides, however a pattern is found."""
    table = [
        route("exact", "a@example.org"),
        route("first", "*@example.net"),
        route("second", "*@example.net"),
        route("wild", "b*@example.org"),
        route("domain", "*@example.org"),
        route("late", "late@example.org", "*late@example.org"),
        route("expression", r"/c@.*\.example\.org/"),
        route("everyone", "*"),
        route("never", "*", r"/.*/"),
    ]
    found = Router(table, SINKS).match(address)
    assert found is not None
    assert expected == found.route


def test_a_match_carries_what_the_route_says() -> None:
    """Mode, acceptance and sinks are the route's; acceptance falls back on the top level's."""
    table = [
        route("a", "a@x", mode="raw", acceptance="hold", best_effort=["json"]),
        route("b", "b@x"),
    ]
    router = Router(table, SINKS, "spool")
    first, second = router.match("a@x"), router.match("b@x")
    assert first is not None
    assert second is not None
    assert ("raw", "hold", ("s",), ("json",)) == (first.mode, first.acceptance, first.sinks, first.best_effort)
    assert ("parsed", "spool") == (second.mode, second.acceptance)


@pytest.mark.parametrize(
    ("mode", "sinks", "event_max", "message_max"),
    [
        pytest.param("parsed", ["s"], MIB, None, id="parsed leaves out"),
        pytest.param("raw", ["s"], MIB, message_max_octets(MIB, "raw", True), id="raw as octets"),
        pytest.param("raw", ["s", "json"], MIB, message_max_octets(MIB, "raw", True), id="the least of two"),
        pytest.param("both", ["s", "small"], 100_000, message_max_octets(100_000, "both", True), id="the least of required sinks"),
    ],
)
def test_limits_follow_from_the_required_sinks(mode: str, sinks: list[str], event_max: int, message_max: int | None) -> None:
    """The largest message is one whose event every required sink carries; best-effort sinks have no say."""
    found = matched("*", "a@x", mode=mode, sinks=sinks, best_effort=[name for name in ("small",) if name not in sinks])
    assert found is not None
    assert (event_max, message_max) == (found.event_max_octets, found.message_max_octets)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        pytest.param("example.org", "a domain alone is no pattern", "write *@example.org", id="domain"),
        pytest.param("sales", "an address has a domain", "write sales@example.org or sales@*", id="name"),
        pytest.param("@example.org", "half of the address is missing", "write *@example.org", id="no local part"),
        pytest.param("sales@", "half of the address is missing", "write sales@example.org or sales@*", id="no domain"),
        pytest.param("a@x, b@x", "an address has no white space", "write one pattern an item", id="two in one"),
        pytest.param("/a", "a regular expression stands between two slashes", "write /.../", id="one slash"),
        pytest.param("//", "a regular expression stands between two slashes", "write /.../", id="nothing between"),
        pytest.param("*" * 17 + "@x", "more than 16 `*`", "use fewer", id="stars"),
        pytest.param(
            "a@*bücher.example",
            "`*` inside a label with other than ASCII letters",
            "write the label in its A-label form (xn--...)",
            id="star in a U-label",
        ),
    ],
)
def test_bad_patterns(text: str, message: str, remedy: str) -> None:
    """A bad pattern is refused in words."""
    with pytest.raises(PatternError) as caught:
        compile_pattern(text)
    assert (message, remedy) == (caught.value.message, caught.value.remedy)


def test_a_risky_expression_is_a_bad_pattern() -> None:
    """The judge of expressions is asked."""
    with pytest.raises(PatternError, match="busy"):
        compile_pattern("/([a-z]+)+@x/")


PIECES = st.lists(st.sampled_from(["*", "a", "b", "-", "."]), min_size=1, max_size=6).map("".join)
NAMES = st.text(alphabet="ab-.", min_size=1, max_size=8)


@given(local=PIECES, domain=PIECES, mailbox=NAMES, host=NAMES)
def test_wildcards_mean_any_run(local: str, domain: str, mailbox: str, host: str) -> None:
    """A pattern takes what the plain translation of ``*`` takes, no more and no less."""
    pattern, address = f"{local}@{domain}", f"{mailbox}@{host}"
    if "*" in pattern and not host.endswith(".") and not domain.endswith("."):  # a last dot is the root's, and goes
        plain = re.compile(re.escape(pattern).replace(r"\*", ".*"))
        assert (plain.fullmatch(address) is not None) == (matched(pattern, address) is not None)


def test_hostile_addresses_cost_little() -> None:
    """A pattern with many wildcards looks at a long address in bounded time."""
    router = Router([route("r", "*a" * 15 + "@*.example.org")], SINKS)
    started = time.process_time()
    for _ in range(20):
        assert router.match("a" * 4000 + "@" + "a." * 2000 + "example.com") is None
    assert time.process_time() - started < 2.0


def test_a_large_table_is_looked_up() -> None:
    """With 20,000 exact addresses and domains, a match costs what it costs with two."""
    table = [route(f"r{i}", f"user{i}@example.org", f"*@d{i}.example.org") for i in range(10_000)]
    router = Router(table, SINKS)
    started = time.process_time()
    for i in range(2000):
        assert router.match(f"any@d{i * 5}.example.org") is not None
    assert (time.process_time() - started) / 2000 < 100e-6


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param("a+b@x", ("a@x", "b"), id="tag"),
        pytest.param("a@x", ("a@x", None), id="none"),
        pytest.param("a@x+y", ("a@x+y", None), id="plus in the domain"),
        pytest.param("+b@x", ("+b@x", None), id="plus first"),
        pytest.param('"a+b c"@x', ('"a+b c"@x', None), id="quoted"),
    ],
)
def test_split_tag(address: str, expected: tuple[str, str | None]) -> None:
    """A plus in the domain, at the start, or inside quotes makes no tag."""
    assert expected == split_tag(address)


def test_the_shared_match_cannot_be_changed() -> None:
    """Matches are shared between recipients: their captures are read-only."""
    found = matched("*", "a@x")
    assert found is not None
    with pytest.raises(TypeError):
        found.captures["x"] = "y"  # type: ignore[index]
