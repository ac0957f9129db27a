"""JSON files of a model folder; anything wrong in one raises a ModelFormatError that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ModelFormatError


def read_any(path: Path) -> Any:
    """Return the value in a JSON file; NaN and infinities, which JSON lacks, are refused."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ModelFormatError(f"{path}: the file is missing") from None
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not valid JSON: {error}") from error
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file."""
    value = read_any(path)
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_if_there(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file."""
    return read_json(path) if path.is_file() else {}


def positive_integer(
    config: Mapping[str, Any], key: str, path: Path, default: int | None = None
) -> int:
    """Return a required positive integer of a JSON object."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelFormatError(f"{path}: {key} must be a positive integer, got {value!r}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
