"""Events as JSON lines in a file, or on standard output: the embedded default and the dead-letter export.

- ``sink``: the sink, which gathers lines in groups.
- ``appender``: the process that writes for it: started, spoken with, ended.
- ``appending``: the program of that process: files that end with whole lines.
"""

from __future__ import annotations

from postbus.sinks.file.sink import FileSink
from postbus.sinks.settings import FileSettings

__all__ = ["FileSink", "make"]


def make(name: str, settings: FileSettings) -> FileSink:
    """Return the sink *name*, not yet started (entry point ``postbus.sinks``)."""
    return FileSink(name, settings)
