"""What a service that is checked by mypy sees of the package."""

import sys
import sysconfig
from pathlib import Path

import pytest

import ai_model_optimizations

PROGRAM = """
from ai_model_optimizations import SmartCache
from ai_model_optimizations.memory_monitor import track_memory

cache = SmartCache()

@cache.cached
async def answer(question: str) -> int:
    return len(question)

@track_memory
def handle(text: str, *, strict: bool = False) -> int:
    return len(text)

async def main() -> tuple[int, str, int, int]:
    coroutine = await cache.aget_or_compute("q", answer)
    function = await cache.aget_or_compute("q", str.upper)
    plain = cache.get_or_compute("q", len)
    return coroutine, function, plain, await answer("q") + handle("q", strict=True)
"""


def test_a_program_that_uses_the_decorators_and_computes_is_strictly_typed(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    if not Path(ai_model_optimizations.__file__).is_relative_to(sysconfig.get_path("platlib")):
        pytest.skip("mypy does not see an editable install")
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--strict", "--python-executable", sys.executable]
    cache = ["--cache-dir", str(tmp_path / "cache")]
    out, _, status = mypy.run([*options, *cache, str(tmp_path / "program.py")])
    assert status == 0, out
