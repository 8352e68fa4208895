"""What can go wrong with the spool, named by what the caller does next.

SpoolFault
  +- SpoolFull      452: room is missing (a bound of ours, or the disk); the mail was not taken
  +- SpoolFailed    451: the disk failed, or the spool is closed; the mail was not taken
  |    +- SpoolUnwritable   something in a group is no value that SQLite can hold: a mistake of ours
  +- SpoolRefused   at start: this folder cannot be ours (in use, newer format, network file system); the operator must act
  +- SpoolDamaged   what is on disk is not what was written
"""

from __future__ import annotations


class SpoolFault(Exception):  # noqa: N818 - a fault is what it is called everywhere else
    """Any fault of the spool. The text is for the log; peers get a fixed one."""


class SpoolFull(SpoolFault):
    """No room: answer 452 4.3.1."""


class SpoolFailed(SpoolFault):
    """The disk failed, or the spool is not open: answer 451 4.3.0."""


class SpoolUnwritable(SpoolFailed):
    """Something in a group is no value that SQLite can hold; without it the others can be written."""


class SpoolRefused(SpoolFault):
    """The folder cannot be used; the text says why and what to do."""


class SpoolDamaged(SpoolFault):
    """What was read is not what was written."""
