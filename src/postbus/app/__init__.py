"""The composition root: everything is built, started, supervised, reloaded and drained here, and nowhere else.

- ``process``: the whole running program, its start and its end.   ``rooms``: what a reload can replace.
- ``view``: what the sidecar is told.   ``guide``: what a person at the terminal is told.   ``loop``: which event loop, which signals.
"""

from __future__ import annotations

from postbus.app.loop import run

__all__ = ["run"]
