"""The sole reader of postbus's settings: one tree from embedded defaults, a YAML file and ``POSTBUS__...`` variables.

``load`` gives valid settings or findings, ``check`` looks at what concerns more than one setting and at the files they
name, ``redacted`` and ``schema`` are what the sidecar shows.
"""

from __future__ import annotations

from postbus.config.changes import changes
from postbus.config.check import check
from postbus.config.finding import ConfigurationError, Finding
from postbus.config.load import Loaded, load
from postbus.config.manual import manual, schema
from postbus.config.redact import redacted
from postbus.config.tree import Settings

__all__ = ["ConfigurationError", "Finding", "Loaded", "Settings", "changes", "check", "load", "manual", "redacted", "schema"]
