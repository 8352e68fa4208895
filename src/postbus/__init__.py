"""Postbus: inbound mail to events."""

__version__ = "0.1.0"
