"""A progress bar over batches, if one is wanted and tqdm is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def with_progress_bar(starts: Iterable[int], wanted: bool | None) -> Iterable[int]:
    """Wrap the batches in a tqdm bar when one is wanted and tqdm is installed."""
    batches = list(starts)
    if wanted is None:
        wanted = len(batches) >= 100 and sys.stderr.isatty()
    if not wanted:
        return batches
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return batches
    bar: Iterable[int] = tqdm(batches, desc="Batches")
    return bar
