"""The doctor finds what is wrong, only that, and runs none of what it reads."""

import argparse
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from ai_model_optimizations.memory_monitor import doctor, limits, process


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing is wrong."""
    for name in ("OMP_NUM_THREADS", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "1")
    for name in ("WEB_CONCURRENCY", "PYTHONTRACEMALLOC", "MEMORY_THRESHOLD_MB", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def checks(folder: Path) -> list[str]:
    return [finding.check for finding in doctor.examine(folder)]


def test_a_healthy_folder_has_no_findings(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "from ai_model_optimizations.memory_monitor import *\nsetup_memory_monitoring()\n"
    )
    assert doctor.examine(tmp_path) == []
    assert "nothing found" in doctor.report([])


@pytest.mark.parametrize(
    "name", ["ai_model_optimizations.py", "src/ai_model_optimizations/__init__.py"]
)
def test_a_module_that_shadows_the_package_is_found(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("raise SystemExit('this must not run')\n")
    (finding,) = doctor.examine(tmp_path)
    assert (finding.check, finding.where) == ("shadowing", str(file))


def test_this_package_itself_does_not_shadow_itself(tmp_path: Path) -> None:
    package = Path(doctor.__file__).parent.parent
    # Beside it may lie all of an environment.
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("*.so"))
    found = checks(tmp_path)
    assert "shadowing" not in found
    assert "two monitors" not in found


def test_a_second_monitor_is_found_where_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "memory_monitor.py").write_text(
        "class MemoryMonitor:\n    pass\n\nmemory_monitor = MemoryMonitor()\n"
    )
    (tmp_path / "handler.py").write_text(
        "from ai_model_optimizations.memory_monitor import MemoryMonitor\n"
        "def handler():\n    return MemoryMonitor().get_stats()\n"
    )
    found = {finding.where: finding for finding in doctor.examine(tmp_path)}
    assert found.keys() == {
        f"{tmp_path}/handler.py:3",
        f"{tmp_path}/memory_monitor.py:1",
        f"{tmp_path}/memory_monitor.py:4",
    }
    assert "with a warning" in found[f"{tmp_path}/handler.py:3"].problem


def test_tracemalloc_that_is_left_on_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left.py").write_text("import tracemalloc\ntracemalloc.start(25)\n")
    (tmp_path / "ended.py").write_text(
        "import tracemalloc\ntracemalloc.start()\ntracemalloc.stop()\n"
    )
    assert [f.where for f in doctor.examine(tmp_path)] == [f"{tmp_path}/left.py:2"]
    monkeypatch.setenv("PYTHONTRACEMALLOC", "5")
    assert checks(tmp_path) == ["tracemalloc"] * 2
    tracemalloc.start()
    try:
        assert doctor.examine(tmp_path)[0].where == "this process"
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_more_threads_than_processors_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_allowed_threads", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert doctor.examine(tmp_path) == []
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    (finding,) = doctor.examine(tmp_path)
    assert finding.check == "threads" and finding.advice == "set OMP_NUM_THREADS=2"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    (finding,) = doctor.examine(tmp_path)
    assert "64" in finding.problem and finding.advice == "set OMP_NUM_THREADS=2"


def test_unbounded_glibc_arenas_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr(process, "allocator", lambda: {"name": "glibc"})
    assert checks(tmp_path) == ["glibc arenas"]
    monkeypatch.setattr(process, "allocator", lambda: {"name": "jemalloc"})
    assert checks(tmp_path) == []


def test_a_threshold_above_the_containers_limit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = limits.ContainerMemory(2, "/", 1000 * limits.MIB, 0, 0)
    monkeypatch.setattr(limits, "container_memory", lambda: container)
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", "2000")
    (finding,) = doctor.examine(tmp_path)
    assert finding.advice.startswith("set at most 850")
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", "much")
    assert checks(tmp_path) == ["threshold"]
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", "500")
    assert checks(tmp_path) == []


def test_files_that_are_no_python_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bytes.py").write_bytes(bytes(range(256)))
    (tmp_path / "null.py").write_bytes(b"a\0b")
    (tmp_path / "syntax.py").write_text("def (:\n")
    (tmp_path / "codec.py").write_text("# -*- coding: no-such-codec -*-\n")
    (tmp_path / "escape.py").write_text("x = '\\d'\n")
    (tmp_path / "deep.py").write_text("(" * 5000 + ")" * 5000)
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.py").mkdir()
    assert doctor.examine(tmp_path) == []


def test_each_source_is_parsed_once_and_only_where_it_can_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "both.py").write_text("import tracemalloc\ntracemalloc.start()\nMemoryMonitor()\n")
    (tmp_path / "neither.py").write_text("x = 1\n")
    parsed: list[str] = []
    parse = doctor.parse

    def counting(path: Path) -> object:
        parsed.append(path.name)
        return parse(path)

    monkeypatch.setattr(doctor, "parse", counting)
    assert sorted(checks(tmp_path)) == ["tracemalloc", "two monitors"]
    assert parsed == ["both.py"]


def test_a_folder_of_too_many_sources_says_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(doctor, "_MOST_FILES", 3)
    assert checks(tmp_path) == []
    monkeypatch.setattr(doctor, "_MOST_FILES", 2)
    (finding,) = doctor.examine(tmp_path)
    assert finding.check == "sources" and finding.where == str(tmp_path / "c.py")


def test_environments_and_caches_are_not_searched(tmp_path: Path) -> None:
    for folder in ("venv", ".hidden", "node_modules", "lib/site-packages"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "ai_model_optimizations.py").write_text("")
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    assert doctor.examine(tmp_path) == []


def test_the_command_prints_text_or_json_and_exits_by_its_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_command(parser.add_subparsers())

    def run(*words: str) -> int:
        arguments = parser.parse_args(["doctor", *words])
        code: int = arguments.run(arguments)
        return code

    assert run(str(tmp_path)) == 0
    (tmp_path / "ai_model_optimizations.py").write_text("")
    capsys.readouterr()
    assert run(str(tmp_path)) == 1
    assert "[shadowing]" in capsys.readouterr().out
    assert run(str(tmp_path), "--json") == 1
    assert json.loads(capsys.readouterr().out)[0]["check"] == "shadowing"
    assert run(str(tmp_path / "missing")) == 2
    assert "missing" in capsys.readouterr().err
