"""What perf says is read right."""

from __future__ import annotations

import pytest

from tests.bench.profile import shares

REPORT = """# Overhead  Shared Object
    48.10%  [kernel.kallsyms]
    30.00%  libpython3.11.so.1.0
     2.00%  python3.11
     1.50%  abc__mypyc.cpython-311-x86_64-linux-gnu.so
     1.00%  libcrypto.so.3
"""


def test_what_belongs_together_is_summed() -> None:
    """Programs and libraries count as the parts they are of; what has no part keeps its name."""
    expected = {"kernel": 48.1, "interpreter": 32.0, "compiled code": 1.5, "libcrypto.so.3": 1.0}
    assert shares(REPORT) == pytest.approx(expected)
