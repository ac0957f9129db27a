"""Counters in the format that older services read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 2**20


@dataclass
class ModelPerformanceMetrics:
    """Counts of one part; seconds, MiB, and requests per second of processing.

    ``vars(metrics)`` is a dict of plain numbers.
    """

    total_requests: int = 0
    total_processing_time: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    sets: int = 0
    memory_usage_mb: float = 0.0
    average_response_time: float = 0.0
    throughput_per_second: float = 0.0

    @property
    def cache_hit_rate(self) -> float:
        """Hits in percent of all look-ups; 0 before the first."""
        lookups = self.cache_hits + self.cache_misses
        return 100.0 * self.cache_hits / lookups if lookups else 0.0

    def observe(self, seconds: float, requests: int = 1) -> None:
        """Count requests that took `seconds` in total."""
        self.total_requests += requests
        self.total_processing_time += seconds
        if self.total_requests:
            self.average_response_time = self.total_processing_time / self.total_requests
        if self.total_processing_time > 0:
            self.throughput_per_second = self.total_requests / self.total_processing_time
