import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ai_model_optimizations.memory_monitor import MemoryMonitor, allocations, memory_monitor


@pytest.fixture
def monitor() -> Iterator[MemoryMonitor]:
    """The process's monitor, as new before the test and again after it."""
    memory_monitor.stop_monitoring()
    memory_monitor._set_up()
    yield memory_monitor
    memory_monitor.stop_monitoring()
    memory_monitor._set_up()
    allocations.stop()


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code in a child where every warning is an error; returns what it printed."""

    def run(code: str, *, timeout: float = 120, **environment: str) -> str:
        import os

        result = subprocess.run(
            [sys.executable, "-W", "error", "-X", "faulthandler", "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == "", result.stderr
        return result.stdout

    return run
