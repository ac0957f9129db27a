"""The example that docs/cache.md points to; its snippets are run by tests/docs."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "semantic_cache.py"


def test_the_example_runs_and_shows_a_refused_hit(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"0\.[89]\d+ antonym +'Is the port closed", printed)
    assert "2 hits (1 of the same text)" in printed
