"""Properties of events hold on slow machines too: no deadline for single examples."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
