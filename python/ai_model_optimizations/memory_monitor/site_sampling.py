"""Allocation site sampling for the monitor, which stops sampling only if it started it."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import UnsupportedError
from . import allocations
from .judge import Judge
from .snapshot import megabytes

_logger = logging.getLogger("ai_model_optimizations")


class SiteSampling:
    """Starts and stops the hook for a monitor, and shows the judge what it holds."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._owns_hook = False

    def start(self, sample_bytes: int | None) -> None:
        """Start the hook unless it is running; None takes its default sampling distance."""
        if allocations.status().running:
            return
        try:
            if sample_bytes is None:
                allocations.start()
            else:
                allocations.start(sample_bytes=sample_bytes)
        except UnsupportedError as error:  # AIMO_DISABLE must not keep the service from starting
            _logger.warning("memory is monitored without allocation sites: %s", error)
            return
        self._owns_hook = True
        self._judge.forget_sites()

    def stop(self) -> None:
        """Stop the hook if it was started here."""
        if self._owns_hook:
            allocations.stop()
            self._owns_hook = False

    def read(self) -> None:
        """Give the judge the current sites."""
        if allocations.status().running:
            self._judge.add_sites(allocations.snapshot().sites)
        else:
            self._judge.forget_sites()


def site_dict(site: allocations.Site) -> dict[str, Any]:
    """Return a site as plain JSON."""
    return {
        "site": str(site),
        "live_mb": megabytes(site.live_bytes),
        "live_blocks": int(site.live_blocks),
    }
