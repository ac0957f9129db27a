"""The device that an index may search with. It affects only the speed, never the answers."""

from __future__ import annotations

import logging
import threading

from .._core import EmbeddingIndex
from ..devices import CPU, device_name, parse_device
from ..errors import DeviceError

_log = logging.getLogger("ai_model_optimizations")


class IndexDevice:
    """Makes the indexes of one cache, and warns once if the device fails.

    Parameters
    ----------
    device : see :func:`~ai_model_optimizations.devices.parse_device`, which also has the errors
    """

    def __init__(self, device: str) -> None:
        self._number = parse_device(device)
        self._warning = threading.Lock()  # the first to warn takes it and keeps it

    @property
    def name(self) -> str:
        """``"cpu"`` or ``"cuda:N"``."""
        return device_name(self._number)

    def new_index(self, dimension: int, row_dtype: str) -> EmbeddingIndex:
        """Return an empty index; in a forked child, where CUDA fails, one without the device."""
        try:
            return EmbeddingIndex(dimension, row_dtype=row_dtype, device=self._number)
        except DeviceError as error:
            self._warn(str(error))
            return EmbeddingIndex(dimension, row_dtype=row_dtype)

    def figures(self, index: EmbeddingIndex | None) -> tuple[int, int, int]:
        """Return an index's rows on the device, searches that used it, and calls that failed."""
        if index is None or self._number == CPU:
            return 0, 0, 0
        state = index.device_state
        if state["failures"]:
            self._warn(state["error"])
        return state["rows"], state["searches"], state["failures"]

    def _warn(self, error: str) -> None:
        if self._warning.acquire(blocking=False):
            _log.warning("the cache's lookups use the CPU in place of %s: %s", self.name, error)
