"""QuantizationReport: what quantizing changed, tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psutil

from .. import _core

Action = Literal["quantized", "kept", "removed"]

#: Bytes of one element of a matrix or table, by storage type.
ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    dtype_before: str
    dtype_after: str
    bytes_before: int
    bytes_after: int
    action: Action
    #: Why it was kept or removed; empty when it was quantized.
    reason: str = ""
    #: Signal to quantization noise in decibels; inf when nothing was lost, None when unknown.
    sqnr_db: float | None = None
    max_error: float | None = None
    #: Finite values that are too large for the type.
    overflowed: int = 0
    #: Values that became subnormal, with fewer significant bits.
    subnormal: int = 0
    #: Values other than zero that became zero.
    flushed: int = 0


@dataclass(frozen=True)
class CosineReport:
    """Cosines between the vectors of the given and of the quantized model."""

    texts: int
    minimum: float
    mean: float


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing a model changed.

    ``str(report)`` is :meth:`table`; :meth:`to_dict` and :meth:`to_json` are for programs.
    """

    #: What was given: ``"EmbeddingModel"``, ``"dict"``, ``"Module"``, ...
    model: str
    dtype: str
    tensors: tuple[TensorReport, ...]
    #: Resident bytes of the process before and after; None where the system does not tell.
    rss_before: int | None = None
    rss_after: int | None = None
    cosine: CosineReport | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def bytes_before(self) -> int:
        """Bytes of all tensors before."""
        return sum(tensor.bytes_before for tensor in self.tensors)

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors after."""
        return sum(tensor.bytes_after for tensor in self.tensors)

    @property
    def saved(self) -> float:
        """The share of the bytes that was saved, 0 to 1."""
        return 1.0 - self.bytes_after / self.bytes_before if self.bytes_before else 0.0

    def of_action(self, action: Action) -> tuple[TensorReport, ...]:
        """Return the tensors that were ``"quantized"``, ``"kept"`` or ``"removed"``."""
        return tuple(tensor for tensor in self.tensors if tensor.action == action)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that ``json.dumps`` takes; infinity becomes None."""
        content = asdict(self)
        for tensor in content["tensors"]:
            if tensor["sqnr_db"] is not None and math.isinf(tensor["sqnr_db"]):
                tensor["sqnr_db"] = None
            tensor["shape"] = list(tensor["shape"])
        content["tensors"] = list(content["tensors"])
        content["notes"] = list(content["notes"])
        content["bytes_before"] = self.bytes_before
        content["bytes_after"] = self.bytes_after
        content["saved"] = self.saved
        return content

    def to_json(self, indent: int | None = 2) -> str:
        """Return :meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def table(self) -> str:
        """Return the report as text, one line per tensor and a summary."""
        rows: list[tuple[str, ...]]
        rows = [("tensor", "shape", "before", "after", "bytes", "SQNR", "max error", "note")]
        rows += [_row(tensor) for tensor in self.tensors]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "", *self.summary()])

    def summary(self) -> list[str]:
        """Return the lines under the table."""
        lines = [
            f"{self.model} to {self.dtype}: {_megabytes(self.bytes_before)} to "
            f"{_megabytes(self.bytes_after)} ({self.saved:.1%} less)"
        ]
        lines += _count_lines(self)
        if self.rss_before is not None and self.rss_after is not None:
            lines.append(
                f"process: {_megabytes(self.rss_before)} resident before, "
                f"{_megabytes(self.rss_after)} after"
            )
        if self.cosine is not None:
            lines.append(
                f"cosine with the given model over {self.cosine.texts} texts: "
                f"at least {self.cosine.minimum:.6f}, mean {self.cosine.mean:.6f}"
            )
        return [*lines, *self.notes]

    def __str__(self) -> str:
        return self.table()


def rest_report(dtype: str, after: int, dtype_before: str = "", before: int = 0) -> TensorReport:
    """Return the line for the bytes of an encoder beyond its tensors' elements.

    Panels are padded to 16 columns, dense layers without a bias get one of zeros, and int8 has
    scales and channels that stay in 16 bits.
    """
    name = "(scales, padding)" if dtype == "int8" else "(padding)"
    return TensorReport(name, (), dtype_before or dtype, dtype, before, after, "quantized")


def resident_bytes() -> int:
    """Return the process's resident memory, after returning free memory to the system."""
    _core.allocator_trim()
    return int(psutil.Process().memory_info().rss)


def _row(tensor: TensorReport) -> tuple[str, ...]:
    sqnr = "" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f} dB"
    if tensor.sqnr_db is not None and math.isinf(tensor.sqnr_db):
        sqnr = "exact"
    note = tensor.reason if not tensor.reason else f"{tensor.action}: {tensor.reason}"
    return (
        tensor.name,
        "x".join(map(str, tensor.shape)) or "scalar",
        tensor.dtype_before,
        tensor.dtype_after,
        f"{tensor.bytes_before} > {tensor.bytes_after}",
        sqnr,
        "" if tensor.max_error is None else f"{tensor.max_error:.2e}",
        note,
    )


def _count_lines(report: QuantizationReport) -> Iterable[str]:
    for action in ("kept", "removed"):
        tensors = report.of_action(action)
        if tensors:
            size = sum(tensor.bytes_before for tensor in tensors)
            yield f"{action}: {len(tensors)} tensors, {_megabytes(size)}"
    for what, count in (
        ("too large for the type", sum(t.overflowed for t in report.tensors)),
        ("became subnormal", sum(t.subnormal for t in report.tensors)),
        ("became zero", sum(t.flushed for t in report.tensors)),
    ):
        if count:
            yield f"values that {'are ' if what.startswith('too') else ''}{what}: {count}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
