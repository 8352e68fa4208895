"""``postbus passwd``: users and their passwords in a file of hashes."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from postbus.cli import show
from postbus.server import users

Fail = Callable[[str, str], NoReturn]
"""Says what went wrong and what to do, and ends the command."""


def change(file: Path, user: str, fail: Fail) -> None:
    """Give *user* a password, asked for twice on a terminal, else read as one line of standard input."""
    name = named(user, fail)
    said = users.hashed(_password(name, fail))
    if said is None:
        fail(
            "that is no password",
            f"it may not be empty, nor longer than {users.PASSWORD_MAX_OCTETS} octets, nor hold control characters",
        )
    known = _put(file, name, said, fail)
    show.line(f"{file}: {'changed the password of' if known else 'added'} {name}", "green")


def delete(file: Path, user: str, fail: Fail) -> None:
    """Remove *user*."""
    name = named(user, fail)
    if not file.exists() or not _put(file, name, None, fail):
        fail(f"there is no user {name} in {file}", "see who is: postbus passwd FILE --list")
    show.line(f"{file}: removed {name}", "green")


def listed(file: Path, fail: Fail) -> None:
    """Print every user's name, one a line."""
    try:
        known = users.read(file)
    except users.UsersUnusable as error:
        fail(str(error), error.remedy)
    sys.stdout.write("".join(f"{name}\n" for name in known.hashes))


def named(user: str, fail: Fail) -> str:
    """Return *user* as it stands in the file."""
    name = users.prepared(user)
    if name is None:
        fail("no user can have that name", f"leave out spaces, colons, # and control characters; {users.USER_MAX_OCTETS} octets at most")
    return name


def _put(file: Path, name: str, said: str | None, fail: Fail) -> bool:
    try:
        return users.put(file, name, said)
    except users.UsersUnusable as error:
        fail(str(error), error.remedy)
    except OSError as error:
        fail(f"{file} cannot be written: {(error.strerror or 'unknown').lower()}", "check the path, and who may write there")


def _password(name: str, fail: Fail) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"Password for {name}: ")
    if password != getpass.getpass("The same again: "):
        fail("the two are not the same", "try again; nothing was changed")
    return password
