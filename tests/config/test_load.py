"""Where settings come from, which one wins, and what is remembered about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path as FilePath

import pytest

from postbus.config import Loaded, check, load
from postbus.config.finding import Path
from postbus.config.tree import EMBEDDED

EXAMPLE = FilePath(__file__).parents[2] / "docs" / "examples" / "postbus.yaml"


def loaded(text: str, folder: FilePath, environ: dict[str, str] | None = None) -> Loaded:
    """Return what a file with *text* and *environ* give."""
    file = folder / "postbus.yaml"
    file.write_text(text)
    return load(file, environ or {})


def test_the_embedded_defaults_are_the_quick_start(monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath) -> None:
    """Without file and environment: SMTP on 2525, HTTP on 8080, everyone's mail to standard output, spooled; and nothing to complain of."""
    monkeypatch.chdir(tmp_path)
    known = load(None, {})
    settings = known.settings
    assert {"smtp": "127.0.0.1:2525"} == {name: listener.address for name, listener in settings.listeners.items()}
    assert "127.0.0.1:8080" == settings.sidecar.address
    assert [("everyone", ("*",), ("stdout",))] == [(route.name, route.match, route.sinks) for route in settings.routes]
    assert ("file", "-") == (settings.sinks["stdout"].kind, getattr(settings.sinks["stdout"], "path", None))
    assert ("spool", FilePath("spool")) == (settings.acceptance, settings.spool.folder)
    assert [] == check(known)


def test_loading_leaves_the_embedded_defaults_alone() -> None:
    """An override is one load's, not the process's."""
    load(None, {"POSTBUS__LISTENERS__SMTP__ADDRESS": ":25", "POSTBUS__ROUTES__0__MODE": "raw"})
    assert "127.0.0.1:2525" == load(None, {}).settings.listeners["smtp"].address
    assert {"smtp": {"address": "127.0.0.1:2525"}} == EMBEDDED["listeners"]


def test_a_file_replaces_the_listeners(tmp_path: FilePath) -> None:
    """A file with its own listeners has no other."""
    settings = loaded("listeners: {lmtp: {protocol: lmtp}}", tmp_path).settings
    assert ["lmtp"] == list(settings.listeners)
    assert ["everyone"] == [route.name for route in settings.routes]


def test_a_file_with_routes_keeps_the_embedded_sink(tmp_path: FilePath) -> None:
    """Routes alone may lead to standard output."""
    settings = loaded("routes: [{name: a, match: a@x, sinks: stdout}]", tmp_path).settings
    assert ["stdout"] == list(settings.sinks)


def test_an_empty_file_changes_nothing(tmp_path: FilePath) -> None:
    """An empty file, one of comments, and ``{}`` are the defaults."""
    default = load(None, {}).sha256
    assert [default] * 3 == [loaded(text, tmp_path).sha256 for text in ("", "# nothing\n", "{}")]


@pytest.mark.parametrize(
    ("variable", "value", "place", "expected"),
    [
        pytest.param("POSTBUS__LISTENERS__SMTP__ADDRESS", ":25", "listeners.smtp.address", ":25", id="leaf of an embedded map"),
        pytest.param("POSTBUS__LISTENERS__MX2__ADDRESS", ":26", "listeners.mx2.address", ":26", id="another name"),
        pytest.param("POSTBUS__LISTENERS__1__ADDRESS", ":26", "listeners.1.address", ":26", id="a name of digits"),
        pytest.param("POSTBUS__ROUTES__0__MODE", "raw", "routes.0.mode", "raw", id="item of a list"),
        pytest.param("POSTBUS__ROUTES__0__SINKS", '["stdout"]', "routes.0.sinks", ("stdout",), id="list as JSON"),
        pytest.param("POSTBUS__ROUTES__0__SINKS", "stdout", "routes.0.sinks", ("stdout",), id="list of one as text"),
        pytest.param("POSTBUS__ROUTES__0__MATCH", "/[a-z]+@x/", "routes.0.match", ("/[a-z]+@x/",), id="text that holds a bracket"),
        pytest.param("POSTBUS__DRAIN_TIMEOUT_S", "7.5", "drain_timeout_s", 7.5, id="number"),
        pytest.param("POSTBUS__SIDECAR__ENABLED", "false", "sidecar.enabled", False, id="switch"),
        pytest.param("POSTBUS__SIDECAR__ENABLED", "0", "sidecar.enabled", False, id="switch as a number"),
        pytest.param("POSTBUS__HOSTNAME", "12", "hostname", "12", id="text that looks like a number"),
        pytest.param("POSTBUS__HOSTNAME", "{mx}", "hostname", "{mx}", id="text that looks like a map"),
        pytest.param("POSTBUS__LISTENERS__SMTP__SOCKET_MODE", "0600", "listeners.smtp.socket_mode", 0o600, id="file mode"),
    ],
)
def test_the_environment_overrides_one_value(variable: str, value: str, place: str, expected: object) -> None:
    """A variable sets one value and leaves the others."""
    found: object = load(None, {variable: value}).settings
    for part in place.split("."):
        found = found[part] if isinstance(found, dict) else found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert expected == found


def test_the_environment_overrides_the_file(tmp_path: FilePath) -> None:
    """Environment before file before default, leaf by leaf."""
    text = "listeners: {smtp: {address: ':1', ident: filed}}\nhostname: filed\n"
    settings = loaded(text, tmp_path, {"POSTBUS__LISTENERS__SMTP__ADDRESS": ":2", "POSTBUS__HOSTNAME": "given"}).settings
    smtp = settings.listeners["smtp"]
    assert (":2", "filed", "given", "smtp") == (smtp.address, smtp.ident, settings.hostname, smtp.protocol)


def test_a_whole_list_can_be_given_and_added_to() -> None:
    """``ROUTES`` gives the list, ``ROUTES__1`` adds to it, whatever the order of the environment."""
    environ = {
        "POSTBUS__ROUTES__1__SINKS": "stdout",
        "POSTBUS__ROUTES__1__NAME": "b",
        "POSTBUS__ROUTES__1__MATCH": "b@x",
        "POSTBUS__ROUTES": '[{"name": "a", "match": "a@x", "sinks": ["stdout"]}]',
    }
    assert ["a", "b"] == [route.name for route in load(None, environ).settings.routes]


def test_kubernetes_variables_are_not_ours() -> None:
    """A Service called postbus puts these into every pod of its namespace."""
    injected = {"POSTBUS_PORT": "tcp://10.0.0.1:25", "POSTBUS_SERVICE_HOST": "10.0.0.1", "POSTBUS_PORT_25_TCP_PROTO": "tcp", "POSTBUS": "x"}
    assert load(None, {}).sha256 == load(None, injected).sha256


def test_yaml_means_what_it_says(tmp_path: FilePath) -> None:
    """The core schema of YAML 1.2: no octal surprises, no sexagesimals, no switches out of words where text is wanted."""
    text = "hostname: no\nlisteners:\n  smtp: {ident: 12:30, socket_mode: 0600, smtputf8: off}\nspool: {max_octets: 1e+10}\n"
    settings = loaded(text, tmp_path).settings
    smtp = settings.listeners["smtp"]
    assert ("no", "12:30", 0o600, False) == (settings.hostname, smtp.ident, smtp.socket_mode, smtp.smtputf8)
    assert 10**10 == settings.spool.max_octets


def test_aliases_are_followed(tmp_path: FilePath) -> None:
    """Anchors and aliases work within their bounds."""
    text = "listeners:\n  a: {address: ':1', limits: &l {errors_max: 3}}\n  b: {address: ':2', limits: *l}\n"
    settings = loaded(text, tmp_path).settings
    assert [3, 3] == [listener.limits.errors_max for listener in settings.listeners.values()]


def test_origins_are_remembered(tmp_path: FilePath) -> None:
    """Every value knows whether it is a default, from the file, or from the environment."""
    environ = {"POSTBUS__ROUTES__0__MODE": "raw", "POSTBUS__SPOOL": '{"max_messages": 9}'}
    known = loaded("listeners: {smtp: {ident: x}}\n", tmp_path, environ)
    expected: dict[Path, str] = {
        ("listeners", "smtp", "ident"): "file",
        ("listeners", "smtp", "address"): "default",
        ("routes", 0, "mode"): "environment",
        ("routes", 0, "name"): "default",
        ("spool", "max_messages"): "environment",
        ("hostname",): "default",
    }
    assert expected == {path: known.origins.of(path) for path in expected}


def test_the_hash_tells_configurations_apart(tmp_path: FilePath) -> None:
    """Equal settings have one hash however they are written; other settings another."""
    first = loaded("hostname: mx\n", tmp_path).sha256
    assert first == load(None, {"POSTBUS__HOSTNAME": "mx"}).sha256
    assert first != load(None, {}).sha256


def test_the_example_loads() -> None:
    """The example in the docs is right, but for the files it names."""
    known = load(EXAMPLE, {})
    assert ["orders", "support", "teams", "rest"] == [route.name for route in known.settings.routes]
    found = check(known)
    assert all("does not exist" in finding.message for finding in found), found


def test_reading_settings_loads_nothing_heavy() -> None:
    """``postbus check`` starts without the servers and clients that the settings are about."""
    heavy = "aiokafka aiohttp httpx fastapi uvicorn opentelemetry.sdk sqlite3 fast_mail_parser typer rich"
    code = f"import sys, postbus.config; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
