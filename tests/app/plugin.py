"""A package that brings a kind of sink, as another project would publish one: a module and its dist-info, in a folder."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
from pathlib import Path

from postbus.sinks import Health, Rejected, Sent


class Notebook:
    """Writes each event's id into a file, or rejects every event."""

    kind = "notebook"
    durable = True
    secure = True
    octets = False
    event_max_octets = 1_000_000
    concurrency = 1

    def __init__(self, name, path, reject):
        self.name, self._path, self._reject = name, path, reject

    async def start(self):
        self._path.touch()

    async def send(self, event):
        if self._reject.exists():
            return Rejected("the notebook says no")
        with self._path.open("a") as file:
            file.write(event.id + "\\n")
        return Sent("noted")

    async def stop(self, timeout_s):
        pass

    def health(self):
        return Health(True, "open")


def make(name, settings):
    unknown = settings.keys() - {"path", "reject", "page"}
    if unknown:
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}; known are page, path, reject")
    if settings.get("page") == "torn":
        raise RuntimeError("a torn page")
    return Notebook(name, Path(settings["path"]), Path(settings.get("reject", "/nowhere")))
'''


def install(folder: Path) -> Path:
    """Write the package into *folder*, which is returned: put it on the path, and its entry point is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "postbus_notebook.py").write_text(MODULE)
    about = folder / "postbus_notebook-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: postbus-notebook\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[postbus.sinks]\nnotebook = postbus_notebook:make\n")
    return folder
