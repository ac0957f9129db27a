"""Checks of constructor arguments; every message names the argument."""

from __future__ import annotations

import numpy as np


def check_count(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_number(name: str, value: object, *, at_least_zero: bool) -> None:
    """Raise TypeError or ValueError unless `value` is finite and above 0, or 0 if that will do."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not np.isfinite(value) or value < 0 or (value == 0 and not at_least_zero):
        bound = "at least 0" if at_least_zero else "above 0"
        raise ValueError(f"{name}: expected a finite number {bound}, got {value}")
