"""The memory command runs a script as if it ran alone, then reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

MAIN = (
    "import argparse, sys\n"
    "from ai_model_optimizations.memory_monitor.command import add_command\n"
    "parser = argparse.ArgumentParser(prog='ai-model-optimizations')\n"
    "add_command(parser.add_subparsers(required=True))\n"
    "options = parser.parse_args()\n"
    "sys.exit(options.run(options))\n"
)
SCRIPT = """
import sys, pickle, pathlib
import numpy as np
class Thing: pass
assert pickle.loads(pickle.dumps(Thing())).__class__ is Thing
assert __name__ == "__main__" and sys.argv[0] == __file__
assert sys.path[0] == str(pathlib.Path(__file__).parent)
def build(count):
    return [bytes(1000) for _ in range(count)]
temporary = build(20000)
del temporary
kept = build(5000)
array = np.ones(1_000_000)
print("args", sys.argv[1:])
sys.exit(3)
"""


def run_memory(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, "memory", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_the_script_runs_as_main_and_its_status_is_passed_on(script: Path) -> None:
    done = run_memory("--", script.name, "--flag", "x", cwd=script.parent)
    assert done.stdout == "args ['--flag', 'x']\n"
    assert done.returncode == 3
    report = done.stderr
    assert "Python memory by call site, at the peak" in report and "script.py:9 (build" in report
    assert "command.py" not in report
    assert "numpy.ndarray in host memory" in report and "resident at most" in report


def test_the_json_report_has_sites_census_and_split(script: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    arguments = ["--json", "--at", "end", "--sample-bytes", "4096", "--output", str(output)]
    done = run_memory(*arguments, "--", str(script), cwd=tmp_path)
    assert done.returncode == 3 and done.stderr == ""
    report = json.loads(output.read_text())
    (site, *_) = report["allocations"]["sites"]
    assert site["live_bytes"] == pytest.approx(5000 * 1033, rel=0.2)
    assert site["traceback"][0]["filename"] == str(script)
    assert report["allocations"]["peak_bytes"] == pytest.approx(20000 * 1033, rel=0.2)
    assert report["split"]["numpy.ndarray in host memory"] >= 8_000_000
    assert report["census"]["total_objects"] > 1000


def test_the_flame_graph_is_one_whole_svg(script: Path, tmp_path: Path) -> None:
    done = run_memory("--svg", "graph.svg", "--", str(script), cwd=tmp_path)
    assert done.returncode == 3
    root = ElementTree.parse(tmp_path / "graph.svg").getroot()
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[0].startswith("all: ") and any("build" in title for title in titles)


@pytest.mark.parametrize(
    ("source", "status", "text"),
    [
        ("raise ValueError('broken')", 1, "ValueError: broken"),
        ("import sys; sys.exit('said no')", 1, "said no"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("import sys; sys.exit()", 0, "by call site"),
        ("kept = 1", 0, "by call site"),
    ],
)
def test_however_the_script_ends_there_is_a_report(
    tmp_path: Path, source: str, status: int, text: str
) -> None:
    (tmp_path / "script.py").write_text(source)
    done = run_memory("--", "script.py", cwd=tmp_path)
    assert done.returncode == status
    assert text in done.stderr and "by call site" in done.stderr
    assert "command.py" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--", "missing.py"], "missing.py"),
        (["--", "wrong.py"], "wrong.py"),
        (["--sample-bytes", "0", "--", "wrong.py"], "sample_bytes: expected 1 to"),
        (["--frames", "65", "--", "wrong.py"], "frames: expected 0 to 64"),
        (["--limit", "-1", "--", "wrong.py"], "--limit: expected 0 or more lines, got -1"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "wrong.py").write_text("def (")
    done = run_memory(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--output", "--svg"])
def test_a_file_that_cannot_be_written_is_named_before_the_script_runs(
    script: Path, option: str
) -> None:
    done = run_memory(option, "missing/file", "--", script.name, cwd=script.parent)
    assert done.returncode == 2 and "missing/file" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
