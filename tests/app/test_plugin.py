"""Sinks of other packages: found by their entry point, checked by their own words, used like ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postbus.app import rooms
from postbus.config import ConfigurationError, check, load, redacted
from postbus.sinks.registry import SinkUnusableError, kinds, make
from postbus.sinks.settings import PluginSettings
from tests.app.plugin import install


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the package for this process; return a folder to write in."""
    monkeypatch.syspath_prepend(str(install(tmp_path / "site")))
    return tmp_path


def said(folder: Path, sink: str, route: str = "") -> list[str]:
    """Return what ``postbus check`` says of a configuration with *sink*."""
    file = folder / "postbus.yaml"
    file.write_text(f"sinks: {{notes: {sink}}}\nroutes: [{{name: all, match: '*', sinks: notes{route}}}]\n")
    try:
        return [str(finding).removeprefix(f"{file}:") for finding in check(load(file, {}))]
    except ConfigurationError as error:
        return list(map(str, error.findings))


def test_an_installed_kind_is_one_of_ours(notebook: Path) -> None:
    """It is listed, made from what the configuration says beside the kind, and not started."""
    assert "notebook" in kinds()
    sink = make("notes", PluginSettings.model_validate({"kind": "notebook", "path": str(notebook / "notes")}))
    assert ("notes", "notebook") == (sink.name, sink.kind)
    assert not (notebook / "notes").exists()


def test_check_takes_it(notebook: Path) -> None:
    """Its settings are its own; a hold route may rest on it, since it says that it is durable."""
    assert [] == said(notebook, "{kind: notebook, path: /tmp/x, page: 3}", ", acceptance: hold")


@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        pytest.param(
            "{kind: notebok, path: /tmp/x}",
            '1: sinks.notes.kind: no sink of kind "notebok" is installed; did you mean notebook?',
            id="misspelt",
        ),
        pytest.param(
            "{kind: notebook, path: /tmp/x, colour: red}",
            "1: sinks.notes: notes has no colour; known are page, path, reject",
            id="its own words",
        ),
        pytest.param("{kind: notebook}", "1: sinks.notes: postbus_notebook:make failed: KeyError: 'path'", id="it fails"),
        pytest.param(
            "{kind: notebook, path: /tmp/x, page: torn}",
            "1: sinks.notes: postbus_notebook:make failed: RuntimeError: a torn page",
            id="it fails otherwise",
        ),
    ],
)
def test_check_says_what_is_wrong(sink: str, expected: str, notebook: Path) -> None:
    """One line, in the package's own words where it has some."""
    assert [expected] == said(notebook, sink)


def test_its_settings_are_not_shown(notebook: Path) -> None:
    """Nobody knows which of them are secret."""
    file = notebook / "postbus.yaml"
    file.write_text("sinks: {notes: {kind: notebook, path: canary, page: 3}}\nroutes: [{name: all, match: '*', sinks: notes}]\n")
    shown = redacted(load(file, {}))
    assert {"kind": "notebook", "path": "***", "page": 3} == shown["settings"]["sinks"]["notes"]
    assert "canary" not in json.dumps(shown)


def test_its_settings_may_come_from_the_environment(notebook: Path) -> None:
    """As text, since nobody knows what else they may be."""
    variables = {
        "POSTBUS__SINKS": '{"notes": {"kind": "notebook"}}',
        "POSTBUS__ROUTES__0__SINKS": "notes",
        "POSTBUS__SINKS__NOTES__PATH": "/tmp/x",
    }
    sink = load(None, variables).settings.sinks["notes"]
    assert isinstance(sink, PluginSettings)
    assert {"path": "/tmp/x"} == sink.options


def test_rooms_are_not_built_of_what_is_not_there(notebook: Path) -> None:
    """The sink is named."""
    settings = load(None, {"POSTBUS__SINKS": '{"stdout": {"kind": "notebook"}}', "POSTBUS__ROUTES__0__SINKS": "stdout"}).settings
    with pytest.raises(rooms.UnbuildableError, match=r"sinks\.stdout: postbus_notebook:make failed"):
        rooms.build(settings, {})


def test_a_kind_of_ours_is_no_plug_in() -> None:
    """Made directly, its class says no."""
    with pytest.raises(SinkUnusableError, match="no sink of kind 'amqp' is installed, there are: file, kafka, webhook"):
        make("x", PluginSettings(kind="amqp"))
