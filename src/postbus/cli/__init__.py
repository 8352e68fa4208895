"""The ``postbus`` command."""

from postbus.cli.main import main

__all__ = ["main"]
