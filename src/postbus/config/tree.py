"""The whole tree of settings: every part's own class, composed.

The chart's ``config:`` is this tree, and ``/config`` shows it. What the parts mean is written beside them; what concerns
more than one of them is checked in ``postbus.config.check``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from postbus.bridge.load_settings import LoadSettings
from postbus.bridge.parsing_settings import ParsingSettings
from postbus.bridge.settings import Acceptance, HoldSettings, Name, RouteSettings, listed
from postbus.bridge.spool_settings import DispatchSettings, RetrySettings, SpoolSettings
from postbus.server.settings import ListenerSettings
from postbus.sidecar.settings import SidecarSettings
from postbus.sinks.settings import SinkSettings
from postbus.telemetry.settings import TelemetrySettings

EMBEDDED: dict[str, Any] = {
    "listeners": {"smtp": {"address": "127.0.0.1:2525"}},
    "sinks": {"stdout": {"kind": "file", "path": "-"}},
    "routes": [{"name": "everyone", "match": "*", "sinks": ["stdout"]}],
}
"""The maps and the list that postbus runs with when nobody says otherwise: what README's first command starts."""


class Settings(BaseSettings):
    """Everything an operator may say. Keys are the same in the file, in ``POSTBUS__...`` variables and in the chart."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="POSTBUS__", env_nested_delimiter="__")

    hostname: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Name that listeners say unless they have their own; null: the machine's.",
    )
    source: str = Field(
        default="/postbus",
        min_length=1,
        max_length=512,
        description="CloudEvents `source`: a URI reference, the same for every replica, as in `//mx.example.org/postbus`.",
    )
    acceptance: Acceptance = Field(
        default="spool",
        description=(
            "What must have happened before a sender gets its 250: `spool` (the message is synced to the local spool) or "
            "`hold` (every required sink has the event). A route can say otherwise."
        ),
    )
    listeners: dict[Name, ListenerSettings] = Field(min_length=1, description="Where mail comes in, by name.")
    sinks: dict[Name, SinkSettings] = Field(min_length=1, description="Where events go, by name.")
    routes: tuple[RouteSettings, ...] = Field(
        min_length=1, description="Which recipients lead to which sinks; the first that fits takes the recipient."
    )
    spool: SpoolSettings = Field(default=SpoolSettings(), description="Where accepted mail is kept until every sink has it.")
    retry: RetrySettings = Field(default=RetrySettings(), description="When a delivery is tried again, and when it is given up.")
    dispatch: DispatchSettings = Field(default=DispatchSettings(), description="What is held in memory on its way to the sinks.")
    hold: HoldSettings = Field(default=HoldSettings(), description="How routes with `acceptance: hold` wait for their sinks.")
    load: LoadSettings = Field(default=LoadSettings(), description="When connections are refused because too much is taken on.")
    hops_max: int = Field(
        default=100,
        ge=10,
        le=1000,
        description="`Received` fields a message may have; one with more goes round in a loop: 554 5.4.6 (RFC 5321 s6.3: at least 100).",
    )
    parsing: ParsingSettings = Field(default=ParsingSettings(), description="Bounds of the processes that take unusual mail apart.")
    sidecar: SidecarSettings = Field(default=SidecarSettings(), description="Probes, status, metrics and configuration over HTTP.")
    telemetry: TelemetrySettings = Field(default=TelemetrySettings(), description="What is logged and traced.")
    received: bool = Field(
        default=False,
        description=(
            "Put a `Received` field of this hop (RFC 5321 s4.4) before the headers that events of modes `parsed` and `both` list. The "
            "mail's octets, their size and `sha256` stay those received, in every mode."
        ),
    )
    require_sink: Annotated[tuple[Name, ...], BeforeValidator(listed, json_schema_input_type=Name | tuple[Name, ...])] = Field(
        default=(),
        description=(
            "Sinks, by name, whose trouble makes `/readyz` fail. By default none: all pods would turn unready at once, and senders "
            "would meet refused connections instead of a clean 451."
        ),
    )
    drain_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="From SIGTERM to exit at the latest. Keep it above every `answer_timeout_s` and below the pod's grace period.",
    )
    watch_interval_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How often the file and the certificates are looked at for changes; 0: reload on SIGHUP only.",
    )

    @field_validator("source")
    @classmethod
    def _is_uri_reference(cls, text: str) -> str:
        if not text.isascii() or any(c <= " " or c in '<>"{}|\\^`\x7f' for c in text):
            raise ValueError(f"{text!a} is not a URI reference; write one like //mx.example.org/postbus")
        return text

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what ``load`` hands over: pydantic-settings' own environment source drops unknown names and forgets origins."""
        return (init_settings,)
