"""The row of kernels: AIMO_CPU chooses it or says why it cannot; dtype="auto" follows it."""

import os
import subprocess
import sys

import pytest

from ai_model_optimizations import _core
from ai_model_optimizations.embedding.dtypes import resolve_dtype

ROWS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "neon")
BF16_ROWS = ("avx512_bf16", "amx")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_taken_or_the_import_says_why_not(row: str) -> None:
    code = "from ai_model_optimizations import _core; print(_core.cpu_info()['row'])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AIMO_CPU": row},
        capture_output=True,
        text=True,
        timeout=60,
    )
    available = _core.cpu_info()["available"]
    # A process that is held to another row has not asked the system for tiles.
    if row in available or (row == "amx" and run.returncode == 0):
        assert run.stdout.split() == [row], run.stderr
    else:
        error = run.stderr.strip().splitlines()[-1]
        assert "UnsupportedError: " in error
        assert f"AIMO_CPU={row}: this machine offers nothing above {available[-1]}" in error


@pytest.mark.parametrize("row", ROWS)
def test_auto_is_bf16_where_kernels_multiply_it(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ai_model_optimizations.embedding.dtypes._core.cpu_info", lambda: {"row": row}
    )
    assert resolve_dtype("auto") == ("bf16" if row in BF16_ROWS else "f16")
