"""The API pages say what the docstrings say."""

from __future__ import annotations

import inspect

import pytest

from postbus import server
from tests import api


def test_there_is_a_page_for_each_and_nothing_else() -> None:
    """No page of a module that is gone."""
    assert set(api.pages()) == {path.name for path in api.FOLDER.iterdir()}


@pytest.mark.parametrize("name", [*(f"{name}.md" for name in api.PAGES), "README.md"])
def test_a_page_is_current(name: str) -> None:
    """If not: ``python -m tests.api``."""
    assert api.pages()[name] == (api.FOLDER / name).read_text("utf-8")


def test_what_the_package_offers_is_on_a_page() -> None:
    """Everything in ``__all__`` but settings, which docs/configuration.md lists, and constants."""
    text = "\n".join(api.pages().values())
    offered = [name for name in server.__all__ if inspect.isclass(getattr(server, name)) or inspect.isfunction(getattr(server, name))]
    missing = [name for name in offered if f"\n## {name}\n" not in text and not name.endswith("Settings")]
    assert set(missing) <= {"TlsUnusable"}
