"""The pytest fixtures, in test runs of their own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "postbus.pytest_plugin"
ROOT = Path(__file__).resolve().parent.parent


def ran(pytester: pytest.Pytester, source: str, **outcomes: int) -> pytest.RunResult:
    """Run *source* as a test module, and see that it comes to *outcomes*."""
    pytester.makepyfile(source)
    result = pytester.runpytest_subprocess("-p", PLUGIN, "-p", "no:asyncio", "-W", "error", "--strict-markers")
    result.assert_outcomes(**outcomes)
    return result


def test_a_server_for_each_test(pytester: pytest.Pytester) -> None:
    """With nothing left of the test before."""
    ran(
        pytester,
        """
        import smtplib
        import pytest

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(postbus_smtpd, number):
            assert postbus_smtpd.messages == []
            with smtplib.SMTP(postbus_smtpd.host, postbus_smtpd.port) as client:
                client.sendmail("a@x.example", ["b@x.example"], f"Subject: {number}\\r\\n\\r\\n")
            (mail,) = postbus_smtpd.wait()
            assert mail.message["Subject"] == str(number)
        """,
        passed=2,
    )


def test_a_marker_says_how_it_serves(pytester: pytest.Pytester) -> None:
    """The nearest one's word counts; the marker is known where markers have to be."""
    ran(
        pytester,
        """
        import smtplib
        import pytest

        pytestmark = pytest.mark.postbus_smtpd(tls="starttls", data_size_limit=10)

        @pytest.mark.postbus_smtpd(data_size_limit=1000)
        def test_it(postbus_smtpd):
            with smtplib.SMTP(*postbus_smtpd.address) as client:
                client.ehlo()
                assert client.has_extn("starttls")
                assert client.esmtp_features["size"] == "1000"
        """,
        passed=1,
    )


def test_several_servers(pytester: pytest.Pytester) -> None:
    """By the factory; all of them end with the test."""
    ran(
        pytester,
        """
        import socket
        import pytest

        ended = []

        def test_two(postbus_smtpd_factory):
            one, two = postbus_smtpd_factory(), postbus_smtpd_factory(protocol="lmtp")
            assert one.port != two.port
            ended.extend([one, two])

        def test_they_have_ended():
            for server in ended:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(server.address, timeout=1)
        """,
        passed=2,
    )


def test_a_coroutine_test_beside_it(pytester: pytest.Pytester) -> None:
    """The server has a thread and a loop of its own."""
    ran(
        pytester,
        """
        import asyncio

        async def talk(port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            banner = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return banner

        def test_it(postbus_smtpd):
            assert asyncio.run(talk(postbus_smtpd.port)).startswith(b"220 ")
        """,
        passed=1,
    )


def test_a_test_that_fails_names_what_came(pytester: pytest.Pytester) -> None:
    """In the words of ``wait``."""
    result = ran(
        pytester,
        """
        def test_it(postbus_smtpd):
            postbus_smtpd.wait(timeout_s=0.01)
        """,
        failed=1,
    )
    result.stdout.fnmatch_lines(["*TimeoutError: 0 of 1 messages came within 0.01 s: none*"])


def test_the_fixtures_are_listed_with_their_words(pytester: pytest.Pytester) -> None:
    """``pytest --fixtures`` is where people look."""
    result = pytester.runpytest_subprocess("-p", PLUGIN, "-p", "no:asyncio", "--fixtures")
    result.stdout.fnmatch_lines(["postbus_smtpd_factory*", "postbus_smtpd *", "*running mail server on a free port*"])


def test_pytest_finds_it_and_pays_little() -> None:
    """The entry point names the plugin, which imports no server before a test asks for one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {PLUGIN: PLUGIN} == project["entry-points"]["pytest11"]
    assert not [name for name in project["dependencies"] if name.startswith("pytest")]
    heavy = "import sys, postbus.pytest_plugin; print([name for name in sys.modules if name.startswith(('postbus.s', 'pydantic'))])"
    assert "[]" == subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, text=True).stdout.strip()
