"""The settings that ``ai-model-optimizations tune`` writes and ``from_config`` reads.

A TOML file with the tables ``[model]`` (name, dtype), ``[batching]`` (arguments of
BatchEmbeddingProcessor) and ``[threads]`` (count). Every key may be missing; none may be unknown.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_VARIABLE: Final = "AIMO_CONFIG"
THREADS_VARIABLE: Final = "AIMO_NUM_THREADS"

# Table and key, and the type of its value. An int is accepted where a float is expected.
_KEYS: Final[dict[str, dict[str, type]]] = {
    "model": {"name": str, "dtype": str},
    "batching": {
        "batch_size": int,
        "max_tokens": int,
        "max_wait_time": float,
        "max_queue": int,
        "timeout": float,
        "workers": int,
        "cache_mb": float,
    },
    "threads": {"count": int},
}


@dataclass(frozen=True)
class Settings:
    """The settings in a configuration file; settings that it lacks keep their defaults.

    Attributes
    ----------
    model, dtype : arguments of ``EmbeddingModel.load``
    batching : arguments of ``BatchEmbeddingProcessor``
    threads : number of threads that compute
    """

    model: str | None = None
    dtype: str | None = None
    batching: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def apply_threads(self) -> None:
        """Set the number of computing threads, unless ``AIMO_NUM_THREADS`` has set it."""
        if self.threads is not None and THREADS_VARIABLE not in os.environ:
            from .._core import set_thread_count

            set_thread_count(self.threads)

    def to_toml(self, comment: str = "") -> str:
        """Return the settings as a file's text, with `comment` at its top."""
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        tables: dict[str, dict[str, Any]] = {
            "model": {"name": self.model, "dtype": self.dtype},
            "batching": self.batching,
            "threads": {"count": self.threads},
        }
        for table, values in tables.items():
            given = {key: value for key, value in values.items() if value is not None}
            if given:
                lines += ["", f"[{table}]"]
                # JSON's numbers and quoted strings are TOML's as well.
                lines += [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        return "\n".join(lines).lstrip("\n") + "\n"


def read_settings(path: str | os.PathLike[str] | None = None) -> Settings:
    """Read a configuration file.

    Parameters
    ----------
    path
        The file; None takes the one that ``AIMO_CONFIG`` names, or no settings if it is not set

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not TOML, or a table, key or value in it is unknown; the message names it.
    """
    if path is None:
        path = os.environ.get(CONFIG_VARIABLE) or None
        if path is None:
            return Settings()
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise ValueError(f"{file}: {error}") from error
    for table, values in content.items():
        if table not in _KEYS:
            raise ValueError(f"{file}: unknown table [{table}]; known are {', '.join(_KEYS)}")
        if not isinstance(values, dict):
            raise ValueError(f"{file}: {table}: expected a table, got {values!r}")
        for key, value in values.items():
            _check(f"{file}: {table}.{key}", _KEYS[table].get(key), value)
    model = content.get("model", {})
    return Settings(
        model=model.get("name"),
        dtype=model.get("dtype"),
        batching=content.get("batching", {}),
        threads=content.get("threads", {}).get("count"),
    )


def _check(where: str, expected: type | None, value: object) -> None:
    if expected is None:
        raise ValueError(f"{where}: unknown key")
    accepted = (int, float) if expected is float else (expected,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ValueError(f"{where}: expected {expected.__name__}, got {value!r}")
