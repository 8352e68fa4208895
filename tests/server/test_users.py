"""The user file: what is in it, who may log in, and what becomes of a damaged one."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from postbus.server import AuthResult, LoginPassword, users
from postbus.server.auth import BearerToken, ClientCertificate
from postbus.server.users import Identity, Passwords, Users, UsersUnusable

SAID = users.hashed("secret") or ""
OTHER_KIND = "$argon2i$v=19$m=512,t=2,p=2$aI2R0hpDyLm3ltLa+1/rvQ$LqPKjd6n8yniKtAithoR7A"
TOO_COSTLY = SAID.replace("m=19456", "m=99999999")


def file(folder: Path, text: str) -> Path:
    """Write a user file."""
    path = folder / "users"
    path.write_text(text, "utf-8")
    return path


def test_a_user_logs_in_and_nobody_else(tmp_path: Path) -> None:
    """By name and password, in whatever form Unicode knows them."""
    umlaut = users.hashed("pa\u00df\u00fc") or ""
    known = users.read(file(tmp_path, f"# mine\n\ntim:{SAID}\nt\u00fcm:{umlaut}\n"))
    assert 2 == len(known)
    assert "tim" == known.verify(b"tim", b"secret")
    assert "t\u00fcm" == known.verify("tu\u0308m".encode(), "pa\u00dfu\u0308".encode())
    for login, password in ((b"tim", b"Secret"), (b"Tim", b"secret"), (b"tim", b""), (b"nobody", b"secret"), (b"", b""), (b"tim", b"\0")):
        assert known.verify(login, password) is None
    assert known.verify(b"tim", b"x" * 5000) is None


def test_nothing_of_it_is_shown(tmp_path: Path) -> None:
    """Not even hashes."""
    known = users.read(file(tmp_path, f"tim:{SAID}\n"))
    assert "argon2" not in repr(known)
    assert "tim" not in repr(known)


def test_an_empty_file_has_no_users(tmp_path: Path) -> None:
    """Nobody can log in, and finding that out takes as long."""
    known = users.read(file(tmp_path, "# nobody yet\n"))
    assert 0 == len(known)
    assert known.verify(b"tim", b"secret") is None


def test_a_stranger_costs_what_the_users_cost(tmp_path: Path) -> None:
    """An unknown name is checked against a hash with the parameters the users have."""
    cheap = "$argon2id$v=19$m=64,t=1,p=1$aI2R0hpDyLm3ltLa+1/rvQ$LqPKjd6n8yniKtAithoR7A"
    known = users.read(file(tmp_path, f"a:{cheap}\nb:{cheap}\nc:{SAID}\n"))
    assert known.stranger.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert users.read(file(tmp_path, f"a:{SAID}\n")).stranger.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_an_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    """The best of some rounds differs by less than half."""
    known = users.read(file(tmp_path, f"tim:{SAID}\n"))

    def best(login: bytes) -> float:
        took = []
        for _ in range(5):
            began = time.thread_time()
            known.verify(login, b"wrong")
            took.append(time.thread_time() - began)
        return min(took)

    wrong, unknown = best(b"tim"), best(b"nobody")
    assert 0.5 < wrong / unknown < 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("tim\n", "line 1: no colon behind the name", id="no colon"),
        pytest.param(f"a:{SAID}\ntim:secret\n", "line 2: no hash of argon2 behind the name", id="a password"),
        pytest.param("tim:\n", "line 1: no hash of argon2 behind the name", id="nothing"),
        pytest.param(f"tim:{SAID[:40]}\n", "line 1: no hash of argon2 behind the name", id="half a hash"),
        pytest.param(f"tim:{OTHER_KIND}\n", "line 1: a hash of another kind, or far too costly", id="argon2i"),
        pytest.param(f"tim:{TOO_COSTLY}\n", "line 1: a hash of another kind, or far too costly", id="too costly"),
        pytest.param(f"tim:{SAID}\ntim:{SAID}\n", "line 2: the name stands twice", id="twice"),
        pytest.param(f"a b:{SAID}\n", "line 1: no name a user can have", id="a space"),
        pytest.param(f":{SAID}\n", "line 1: no name a user can have", id="no name"),
        pytest.param(f"u\u0308:{SAID}\n", "line 1: no name a user can have", id="not in its form"),
    ],
)
def test_a_damaged_line(text: str, problem: str, tmp_path: Path) -> None:
    """The file is unusable as a whole; the line is named, and nothing of it quoted."""
    path = file(tmp_path, text)
    with pytest.raises(UsersUnusable) as caught:
        users.read(path)
    assert f"{path}, {problem}" == str(caught.value)
    assert "postbus passwd" in caught.value.remedy


def test_unreadable_files(tmp_path: Path) -> None:
    """Missing, a folder, not text, not ours."""
    with pytest.raises(UsersUnusable, match="does not exist"):
        users.read(tmp_path / "none")
    with pytest.raises(UsersUnusable, match="is a folder"):
        users.read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsersUnusable, match="is not UTF-8"):
        users.read(tmp_path / "binary")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsersUnusable, match="cannot be read"):
        users.read(tmp_path / "loop")


def test_putting_users_into_a_file(tmp_path: Path) -> None:
    """Made with mode 0600, comments and order kept, replaced at once, removed again."""
    path = tmp_path / "users"
    assert not users.put(path, "tim", SAID)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(f"# mine\n{path.read_text()}ann:{SAID}\n")
    path.chmod(0o644)
    before = path.stat().st_ino
    new = users.hashed("other") or ""
    assert users.put(path, "tim", new)
    assert f"# mine\ntim:{new}\nann:{SAID}\n" == path.read_text()
    assert before != path.stat().st_ino
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert users.put(path, "tim", None)
    assert not users.put(path, "tim", None)
    assert f"# mine\nann:{SAID}\n" == path.read_text()
    assert ["users"] == [path.name for path in tmp_path.iterdir()]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What it points to is replaced."""
    (tmp_path / "link").symlink_to(tmp_path / "users")
    users.put(tmp_path / "link", "tim", SAID)
    assert (tmp_path / "link").is_symlink()
    assert 1 == len(users.read(tmp_path / "users"))


def test_a_damaged_file_is_not_written_to(tmp_path: Path) -> None:
    """Somebody has to look at it first."""
    path = file(tmp_path, "what is this\n")
    with pytest.raises(UsersUnusable):
        users.put(path, "tim", SAID)
    assert "what is this\n" == path.read_text()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """No temporary file stays behind."""
    path = tmp_path / "users"
    path.mkdir()
    with pytest.raises(UsersUnusable):
        users.put(path, "tim", SAID)
    with pytest.raises(OSError, match="directory"):
        users._replace(path, "x")
    assert ["users"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("password", ["", "\0", "a\nb", "x" * 1025])
def test_no_password(password: str) -> None:
    """Empty, endless or with control characters."""
    assert users.hashed(password) is None


@pytest.mark.parametrize(("name", "expected"), [("tim", "tim"), ("a b", None), ("a:b", None), ("#a", None), ("x" * 256, None), ("", None)])
def test_names(name: str, expected: str | None) -> None:
    """A name fits a line of the file."""
    assert expected == users.prepared(name)


def asked(passwords: Passwords, data: Any) -> AuthResult:
    """Return what *passwords* say of *data*."""

    async def scenario() -> AuthResult:
        try:
            return await passwords(None, None, None, "PLAIN", data)
        finally:
            passwords.close()

    return asyncio.run(scenario())


def test_the_authenticator(tmp_path: Path) -> None:
    """Success names the user and forgets the password; failures are all alike; certificates have been verified before."""
    known = users.read(file(tmp_path, f"tim:{SAID}\n"))
    good = asked(Passwords(known), LoginPassword(b"tim", b"secret"))
    assert good.success
    assert Identity(b"tim") == good.auth_data
    failure = AuthResult(success=False, handled=False)
    assert failure == asked(Passwords(known), LoginPassword(b"tim", b"wrong"))
    assert failure == asked(Passwords(known), LoginPassword(b"nobody", b"secret"))
    assert failure == asked(Passwords(None), LoginPassword(b"tim", b"secret"))
    assert failure == asked(Passwords(known), BearerToken(b"tim", b"token"))
    assert asked(Passwords(None), ClientCertificate(b"x", "CN=x", ("CN=x",))).success


def test_too_many_at_once_are_told_to_come_again() -> None:
    """The queue for hashing is bounded: who finds it full gets 454."""

    class Slow(Users):
        """Hashes for as long as it is told to."""

        __slots__ = ()

        def verify(self, login: bytes, password: bytes) -> str | None:
            """Wait."""
            gate.wait(5)
            return None

    import threading

    gate = threading.Event()
    passwords = Passwords(Slow({}, ""))

    async def scenario() -> list[AuthResult]:
        waiting = [asyncio.ensure_future(passwords(None, None, None, "PLAIN", LoginPassword(b"a", b"b"))) for _ in range(users.WAITING_MAX)]
        await asyncio.sleep(0)
        over = await passwords(None, None, None, "PLAIN", LoginPassword(b"a", b"b"))
        gate.set()
        results = await asyncio.gather(*waiting)
        passwords.close()
        return [over, *results]

    over, *rest = asyncio.run(scenario())
    assert users.BUSY == over.message
    assert all(result.message is None for result in rest)
