"""The monitor's settings, checked before any of them changes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from .limits import checked_threshold
from .trend import LEAST_READINGS

DEFAULT_INTERVAL = 60.0
DEFAULT_WINDOW = 10
#: A day of readings at the default interval.
HISTORY_LENGTH = 1440


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings; ``memory_threshold_mb=None`` follows the container."""

    check_interval: float = DEFAULT_INTERVAL
    memory_threshold_mb: float | None = None
    leak_detection_window: int = DEFAULT_WINDOW
    warmup_readings: int = 5
    cooldown: float = 300.0
    gc_on_threshold: bool = False
    trim_on_threshold: bool = False


def _checked_seconds(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {type(value).__name__}")
    if not 0 < value <= threading.TIMEOUT_MAX:
        most = int(threading.TIMEOUT_MAX)
        raise ValueError(f"{name} must be above 0 and at most {most} seconds, got {value!r}")
    return float(value)


def _checked_count(value: object, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= HISTORY_LENGTH:
        raise ValueError(f"{name} must be {least} to {HISTORY_LENGTH}, got {value!r}")
    return value


def _checked_flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def checked_settings(**changes: Any) -> dict[str, Any]:
    """Return the changes that are not None; raise an error that names the first wrong one."""
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        if name in ("check_interval", "cooldown"):
            given[name] = _checked_seconds(value, name)
        elif name == "memory_threshold_mb":
            given[name] = checked_threshold(value)
        elif name == "leak_detection_window":
            _checked_count(value, name, LEAST_READINGS)
        elif name == "warmup_readings":
            _checked_count(value, name, 0)
        else:
            _checked_flag(value, name)
    return given
