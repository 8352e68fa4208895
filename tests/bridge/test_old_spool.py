"""A spool that an older postbus has written: opened, read and rendered by this one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import orjson

from postbus.bridge.parsing import Parser
from postbus.bridge.parsing_settings import ParsingSettings
from postbus.bridge.renderer import Renderer
from postbus.bridge.spool import Spool
from postbus.bridge.spool_settings import SpoolSettings
from postbus.event.schema import json_schema

WRITTEN = Path(__file__).parent / "spool" / "before_parameters.sql"
ALL = 1 << 40


async def events_of(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (id, data) of each event that the spool in *folder* owes its sink."""
    spool, renderer = Spool(SpoolSettings(folder=folder, free_min_octets=0, ballast_octets=0)), Renderer(Parser(ParsingSettings()))
    await spool.open()
    try:
        page = await spool.fresh("hook", 0, 100, ALL)
        assert (True, 0) == (page.complete, page.damaged)
        found = []
        for delivery in page.deliveries:
            rendering = renderer.open(delivery.held.mail, await spool.read(delivery.held))
            event = await rendering.event(delivery.slot.recipient, as_octets=False)
            found.append((event.id, orjson.loads(event.data)))
        return found
    finally:
        await spool.close()


async def test_rows_of_before_the_parameters_are_events_of_today(tmp_path: Path) -> None:
    """Nothing is lost or set aside; ids stay; what was said then is told now, and what nobody wrote down is null."""
    with closing(sqlite3.connect(tmp_path / "spool.db")) as sql:
        sql.executescript(WRITTEN.read_text("utf-8"))
    found = await events_of(tmp_path)
    for _, data in found:
        jsonschema.Draft202012Validator(json_schema()).validate(data)
    (first, team), (second, tagged), (third, stray) = found
    assert "01a20735-8361-71b2-b0bf-1a3c6e894070" == first
    assert "01a20735-8361-71fc-81b5-04888ac4f9cb" == second
    assert "01a20735-8455-74d9-bb62-2aefa1a34e8f" == third
    said = team["envelope"]["params"]
    assert (["SUCCESS", "FAILURE"], "rfc822;red-team@example.org") == (said["notify"], said["orcpt"])
    assert ("QQ314159", "HDRS", "8BITMIME", 500) == (said["envid"], said["ret"], said["body"], said["size"])
    assert (False, None, None, None) == (said["requireTls"], said["priority"], said["by"], said["auth"])
    assert [] == tagged["envelope"]["params"]["notify"]
    assert ({"team": "red"}, "tag") == (team["route"]["captures"], tagged["route"]["tag"])
    assert [("smtp.bare-lf", "1"), ("smtp.nul", "1")] == [(each["code"], each["detail"]) for each in stray["defects"][:2]]
    assert [None, None, None] == [data["client"]["forwarded"] for _, data in found]
    assert "Received" not in [header["name"] for header in team["headers"]]
