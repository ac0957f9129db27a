"""python setup.py says what to type instead, and does nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["install"], "pip install ."),
        (["develop", "--user"], "pip install -e ."),
        (["--quiet", "bdist_wheel"], "python -m build --wheel"),
        ([], "pip install ."),
        (["upload"], "pip install ."),
    ],
)
def test_setup_py_points_to_pip(words: list[str], instead: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "setup.py"), *words]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.splitlines()[-1].strip() == instead
    assert list(tmp_path.iterdir()) == []
