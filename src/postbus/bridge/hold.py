"""Delivery while the sender waits: what a ``hold`` route promises with its 250.

Required sinks are awaited within the deadline. A best-effort sink gets one attempt in the background, once the required ones have the
event: after a 451 the sender comes again, and that would be the second attempt. What either takes in memory is bounded together.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from postbus import telemetry
from postbus.bridge.budget import EVENT_COPIES, Budget
from postbus.bridge.fates import Fates, Word
from postbus.bridge.outcomes import WORDS, Unfit, known
from postbus.bridge.renderer import ParserUnavailableError, Renderer, Rendering
from postbus.event.mail import Mail
from postbus.event.model import UnfitError
from postbus.sinks import Health, Outcome, Retry, Sent, Sink
from postbus.sinks.deadlines import Deadlines

BACKGROUND_MAX = 1_000
"""Best-effort sends under way, if half of the memory is left to those whose senders wait; beyond, they are dropped and counted."""
BEST_EFFORT_TIMEOUT_S = 60.0
PROBE_INTERVAL_S = 1.0
"""A sink in trouble gets one message so often: only mail tells that it works again, since all the rest is refused at RCPT."""

_NO_MEMORY = Retry("no memory for the event within the deadline", sink_down=False)


def _is_away(health: Health) -> bool:
    return not (health.ok or health.beginning)


class Readable(Protocol):
    """A received message's octets, in memory or in a file (``postbus.server.Body`` is one)."""

    octets: bytes | None
    path: Path | None

    def read(self) -> bytes:
        """Return the octets, from the file if need be. Blocks."""


class Courier:
    """Delivers while somebody waits.

    Args:
        sinks: gives the sinks of the moment, so that a reload needs no new courier.
        renderer: makes events.
        fates: where what became of each is remembered.
    """

    def __init__(self, sinks: Callable[[], Mapping[str, Sink]], renderer: Renderer, fates: Fates | None = None) -> None:
        self._sinks = sinks
        self._renderer = renderer
        self._fates = fates or Fates()
        self._background: set[asyncio.Task[Outcome]] = set()
        self._trying: Counter[str] = Counter()
        self._probed_s: dict[str, float] = {}
        self._deadlines = Deadlines()

    def down(self, sinks: Sequence[str]) -> str | None:
        """Return the name of a sink of *sinks* that is known to be away (or not configured), or ``None``. No I/O.

        Of one that has only begun nobody knows yet: mail that comes with the start waits for it. And one that has been in trouble for
        a while, with nothing on its way to it, is said not to be: this mail finds out.
        """
        known = self._sinks()
        troubled = [name for name in sinks if (sink := known.get(name)) is None or _is_away(sink.health())]
        now = time.monotonic()
        for name in troubled:
            if name not in known or self._trying[name] or now < self._probed_s.setdefault(name, now) + PROBE_INTERVAL_S:
                return name
        self._probed_s.update(dict.fromkeys(troubled, now))
        return None

    async def deliver_now(self, mail: Mail, body: Readable, deadline_s: float, memory: Budget) -> list[dict[str, Outcome]]:
        """Return for each recipient, in order, what became of its event at each of its required sinks, within *deadline_s* seconds.

        What is sent at once has its place in *memory*; what finds none there waits for it, so that any number of recipients may be served.
        """
        deadline = asyncio.get_running_loop().time() + deadline_s
        rendering = self._open(mail, body)
        self._fates.begin(mail)
        wanted = [(index, sink) for index, recipient in enumerate(mail.recipients) for sink in recipient.sinks]
        if len(wanted) == 1:
            outcomes: list[Outcome] = [await self._required(rendering, *wanted[0], deadline, memory)]
        else:
            outcomes = await asyncio.gather(*(self._required(rendering, index, sink, deadline, memory) for index, sink in wanted))
        found: list[dict[str, Outcome]] = [{} for _ in mail.recipients]
        for (index, sink), outcome in zip(wanted, outcomes, strict=True):
            found[index][sink] = outcome
        for index, recipient in enumerate(mail.recipients):
            if recipient.best_effort and all(isinstance(outcome, Sent) for outcome in found[index].values()):
                self._best_effort(rendering, index, recipient.best_effort, memory)
        return found

    def _open(self, mail: Mail, body: Readable) -> Rendering:
        if body.path is None:
            return self._renderer.open(mail, body.octets or b"")
        return self._renderer.open(mail, body.path, lambda: asyncio.to_thread(body.read))

    async def _required(self, rendering: Rendering, index: int, name: str, deadline: float, memory: Budget) -> Outcome:
        octets = _octets(rendering.mail, index)
        if not memory.try_take(octets):
            try:
                with self._deadlines.until(deadline):
                    await memory.take(octets)
            except TimeoutError:
                self._note(rendering.mail, index, name, _NO_MEMORY)
                return _NO_MEMORY
        try:
            return await self._attempt(rendering, index, name, deadline)
        finally:
            memory.give(octets)

    async def _attempt(self, rendering: Rendering, index: int, name: str, deadline: float) -> Outcome:
        """Return how one send ended. Nothing but cancellation leaves here."""
        sink = self._sinks().get(name)
        if sink is None:
            return Retry(f"sink {name!r} is not in the configuration")
        start = time.perf_counter()
        self._trying[name] += 1
        try:
            with self._deadlines.until(deadline):
                outcome = known(await sink.send(await rendering.event(index, as_octets=sink.octets)))
        except TimeoutError:
            outcome = Retry("no answer within the deadline")
        except ParserUnavailableError as trouble:
            outcome = Retry(str(trouble), sink_down=False)
        except UnfitError as unfit:
            outcome = Unfit(str(unfit))
        except Exception as error:  # noqa: BLE001 - top of a delivery: a mistake of ours is a 451, never more
            text = "".join(traceback.format_exception(error))
            telemetry.task_restarted(task=f"sink {name}", error=repr(error), after_s=0.0, traceback=text)
            outcome = Retry(f"failed in postbus: {type(error).__name__}", sink_down=False)
        finally:
            self._trying[name] -= 1
        if not isinstance(outcome, Sent):
            self._probed_s[name] = time.monotonic()
        telemetry.delivery_attempted(sink=name, outcome=WORDS[type(outcome)], seconds=time.perf_counter() - start)
        self._note(rendering.mail, index, name, outcome)
        return outcome

    def _note(self, mail: Mail, index: int, name: str, outcome: Outcome) -> None:
        """Remember the fate: what was not delivered is given up here, since the sender has been told and comes again."""
        word: Word = "delivered" if isinstance(outcome, Sent) else "given up"
        self._fates.settle(mail, mail.recipients[index].event_id, name, word, outcome.detail if isinstance(outcome, Sent) else "")

    def _best_effort(self, rendering: Rendering, index: int, sinks: Sequence[str], memory: Budget) -> None:
        loop = asyncio.get_running_loop()
        event_id, octets = rendering.mail.recipients[index].event_id, _octets(rendering.mail, index)
        for name in sinks:
            if len(self._background) >= BACKGROUND_MAX or memory.room_octets < octets + memory.limit_octets // 2:
                telemetry.delivery_given_up(sink=name, event=event_id, reason="crowded", why="too many under way", kept=False)
                continue
            memory.force(octets)
            task = loop.create_task(self._attempt(rendering, index, name, loop.time() + BEST_EFFORT_TIMEOUT_S))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            task.add_done_callback(lambda _: memory.give(octets))

    async def drain(self, deadline_s: float) -> None:
        """Wait for best-effort sends at most *deadline_s* seconds, then end them."""
        if not self._background:
            return
        _, late = await asyncio.wait(self._background, timeout=deadline_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _octets(mail: Mail, index: int) -> int:
    """Return what sending one event takes: the message's octets, the event, the request that carries it."""
    return mail.size_octets + EVENT_COPIES * min(mail.size_octets, mail.recipients[index].event_max_octets)
