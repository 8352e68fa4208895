"""Every log line, metric and span, as one function per fact, taking primitives.

The sole owner of opentelemetry and logging. A fact bumps plain numbers (``_count``, ``_observe``) that observable
instruments read when scraped, and writes at most one line (``_log``).
"""

from __future__ import annotations
