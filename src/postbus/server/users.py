"""The user file: names and salted hashes of passwords (argon2id), one ``name:hash`` a line; ``#`` begins a comment.

Read whole or not at all. Names and passwords are compared in the form of ``sasl.saslprep``. A file is replaced by a rename, so that a
reader sees the old one or the new one. The sole owner of argon2.

Cost of a check: 19 MiB and about 30 ms, OWASP's figures for argon2id; who guesses pays for each guess, and so do we, hence
``Passwords``' bounds. An unknown name costs as much as a wrong password.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from postbus.server.auth import AuthResult, ClientCertificate, LoginPassword
from postbus.server.sasl import saslprep

MEMORY_KIB, ROUNDS, LANES = 19 * 1024, 2, 1  # OWASP password storage cheat sheet
MEMORY_MAX_KIB, ROUNDS_MAX, LANES_MAX = 1024 * 1024, 50, 16  # a file that asks for more is damaged, or a trap
USER_MAX_OCTETS = 255
PASSWORD_MAX_OCTETS = 1024  # argon2 takes more, nobody types it
THREADS = 2
WAITING_MAX = 64  # a guesser's queue; 64 checks are a second of two threads

_HASHER = PasswordHasher(ROUNDS, MEMORY_KIB, LANES)
_UNNAMEABLE = re.compile(r"[:#\s\x00-\x1f\x7f]")
BUSY = "454 4.7.0 Temporary authentication failure"


class UsersUnusable(Exception):  # noqa: N818 - a state of the file, not a mistake of the caller
    """The user file cannot be used; the text says why, for the operator, and quotes nothing of it. ``remedy``: what would help."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Identity:
    """Who has authenticated: ``session.auth_data`` of a listener with a user file."""

    login: bytes


@dataclass(frozen=True, slots=True)
class Users:
    """The users of a file.

    Attributes:
        hashes: by name, argon2's text form.
        stranger: what the password of somebody unknown is checked against, as costly as the others, and nobody's.
    """

    hashes: Mapping[str, str] = field(repr=False)
    stranger: str = field(repr=False)

    def __len__(self) -> int:
        return len(self.hashes)

    def verify(self, login: bytes, password: bytes) -> str | None:
        """Return the user's name if the password is the user's, else ``None``. Blocks, equally long for a name that is not there."""
        name, words = saslprep(login.decode("utf-8", "replace")), saslprep(password.decode("utf-8", "replace"))
        known = self.hashes.get(name or "")
        good = words is not None and len(password) <= PASSWORD_MAX_OCTETS
        try:
            _HASHER.verify(known or self.stranger, words if words is not None and good else "")
        except VerificationError:
            return None
        return name if known is not None and good else None


def read(path: Path) -> Users:
    """Return the users in the file at *path*. Blocks.

    Raises:
        UsersUnusable: it cannot be read, or a line of it is no user.
    """
    hashes: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, said = line.partition(":")
        problem = _problem(name, said.strip()) if colon else "no colon behind the name"
        if problem is None and name in hashes:
            problem = "the name stands twice"
        if problem is not None:
            raise UsersUnusable(f"{path}, line {number}: {problem}", f"remove the line, then: postbus passwd {path} NAME")
        hashes[name] = said.strip()
    return Users(hashes, _stranger(hashes))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UsersUnusable(f"{path} does not exist", f"make it: postbus passwd {path} NAME") from None
    except IsADirectoryError:
        raise UsersUnusable(f"{path} is a folder", "name the file in it") from None
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise UsersUnusable(f"{path} cannot be read: {reason}", "let the user postbus runs as read it") from error
    except UnicodeDecodeError:
        raise UsersUnusable(f"{path} is not UTF-8", f"make it anew: postbus passwd {path} NAME") from None


def _problem(name: str, said: str) -> str | None:
    """Return what is wrong with a line, if anything is."""
    if prepared(name) != name:
        return "no name a user can have"
    try:
        known = extract_parameters(said)
    except (InvalidHashError, ValueError):
        return "no hash of argon2 behind the name"
    if known.type is not Type.ID or not (
        known.memory_cost <= MEMORY_MAX_KIB and known.time_cost <= ROUNDS_MAX and known.parallelism <= LANES_MAX
    ):
        return "a hash of another kind, or far too costly"
    return None


def prepared(name: str) -> str | None:
    """Return *name* as it stands in a file and is compared, or ``None``: no user can be called that."""
    made = saslprep(name)
    return None if made is None or _UNNAMEABLE.search(made) or len(made.encode()) > USER_MAX_OCTETS else made


def _stranger(hashes: Mapping[str, str]) -> str:
    """Return a hash of nobody's password, with the parameters that most of *hashes* have."""
    common = Counter(map(_cost, hashes.values())).most_common(1)
    hasher = PasswordHasher(*common[0][0]) if common else _HASHER
    return hasher.hash(secrets.token_urlsafe())


def _cost(said: str) -> tuple[int, int, int, int, int]:
    """Return what a check against the hash *said* takes, as ``PasswordHasher`` wants it."""
    known = extract_parameters(said)
    return known.time_cost, known.memory_cost, known.parallelism, known.hash_len, known.salt_len


# --- changing a file


def hashed(password: str) -> str | None:
    """Return the salted hash of *password*, or ``None``: it is empty, too long, or holds control characters. Blocks."""
    words = saslprep(password)
    return None if words is None or len(password.encode()) > PASSWORD_MAX_OCTETS else _HASHER.hash(words)


def put(path: Path, name: str, said: str | None) -> bool:
    """Give *name* the hash *said* in the file at *path*, made if it is not there; ``None`` removes the user. Comments stay.

    Return whether the user was there before.

    Raises:
        UsersUnusable: the file is damaged; it stays as it is.
        OSError: it cannot be written.
    """
    lines: list[str] = []
    if path.exists():
        read(path)
        lines = path.read_text("utf-8").splitlines()
    kept = [line for line in lines if line.startswith("#") or line.partition(":")[0] != name]
    known = len(kept) < len(lines)
    if said is not None:
        place = next((at for at, line in enumerate(lines) if not line.startswith("#") and line.partition(":")[0] == name), len(kept))
        kept.insert(place, f"{name}:{said}")
    if said is not None or known:
        _replace(path, "".join(f"{line}\n" for line in kept))
    return known


def _replace(path: Path, text: str) -> None:
    """Write *text* to *path* at once, readable by its owner only; who owned the file before owns it after."""
    target = path.resolve()
    before = target.stat() if target.exists() else None
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(handle, stat.S_IRUSR | stat.S_IWUSR)
            if before is not None and before.st_uid != os.geteuid():
                os.fchown(handle, before.st_uid, before.st_gid)
            file.flush()
            os.fsync(handle)
        Path(name).replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


# --- asked by a server


class Passwords:
    """An authenticator with a user file: PLAIN and LOGIN by its hashes, EXTERNAL by what TLS has verified.

    Attributes:
        users: those that count from now on; replaced as a value. None: passwords are nobody's.
    """

    def __init__(self, users: Users | None) -> None:
        self.users = users
        self._waiting = 0
        self._pool: ThreadPoolExecutor | None = None

    async def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        """Return whether *auth_data* is good. Hashing is done in threads, so many at a time; who comes when too many wait gets 454."""
        del server, session, envelope, mechanism
        if isinstance(auth_data, ClientCertificate):
            return AuthResult(success=True, auth_data=auth_data)
        users = self.users
        if users is None or not isinstance(auth_data, LoginPassword):
            return AuthResult(success=False, handled=False)
        if self._waiting >= WAITING_MAX:
            return AuthResult(success=False, handled=False, message=BUSY)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="passwords")
        self._waiting += 1
        try:
            name = await asyncio.get_running_loop().run_in_executor(self._pool, users.verify, *auth_data)
        finally:
            self._waiting -= 1
        return AuthResult(success=False, handled=False) if name is None else AuthResult(success=True, auth_data=Identity(name.encode()))

    def close(self) -> None:
        """Let the threads end; nobody asks any more."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
