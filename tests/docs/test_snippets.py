"""The Python code in the README and the documentation runs as it stands there."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Put before a block that is not to run, with the reason: <!-- not run: needs a GPU -->
_SKIPPED = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*\n```python\n")
_BLOCK = re.compile(
    r"(?P<mark><!-- not run: [^\n]+? -->\s*\n)?```python\n(?P<code>.*?)^```", re.S | re.M
)
#: What a snippet may use although the base install lacks it.
_OPTIONAL = ("torch", "sentence_transformers", "fastapi", "prometheus_client", "ml_dtypes")


def page_program(page: Path) -> str:
    """All blocks of a page, one after another: a later one may use what an earlier one made.

    Line numbers are the page's own, so that a traceback points into it.
    """
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in _BLOCK.finditer(text):
        if block["mark"]:
            continue
        start = text.count("\n", 0, block.start("code"))
        for offset, line in enumerate(block["code"].splitlines()):
            lines[start + offset] = line
    return "\n".join(lines)


def run_as_page(page: Path, program: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    # A snippet may await at its top level, as in a notebook.
    runner = (
        "import ast, asyncio, inspect, sys\n"
        "flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT\n"
        f"code = compile(sys.stdin.read(), {str(page)!r}, 'exec', flags=flags)\n"
        "names = {'__name__': '__main__'}\n"
        "result = eval(code, names)\n"
        "if inspect.iscoroutine(result): asyncio.run(result)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", runner],
        input=program,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_the_page_runs(page: Path, minilm_path: Path, tmp_path: Path) -> None:
    program = page_program(page)
    if not program.strip():
        pytest.skip("no Python blocks")
    missing = [
        name
        for name in _OPTIONAL
        if re.search(rf"^\s*(import|from) {name}\b", program, re.M) and find_spec(name) is None
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    result = run_as_page(page, program, tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_block_that_fails_is_noticed_and_its_line_is_the_pages(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    result = run_as_page(page, page_program(page), tmp_path)
    assert result.returncode != 0
    assert f'{page}", line 8' in result.stderr


def test_every_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in _SKIPPED.finditer(page.read_text(encoding="utf-8")):
            assert len(block["reason"]) > 5, page
