"""The ``AIMO_DISABLE`` kill switch, read in one place."""

from __future__ import annotations

import os

FEATURES = frozenset({"batch", "cache", "guard", "hook"})


def disabled(feature: str) -> bool:
    """Whether ``AIMO_DISABLE`` (a comma-separated list) names `feature`."""
    if feature not in FEATURES:
        raise ValueError(f"feature: expected one of {sorted(FEATURES)}, got {feature!r}")
    listed = os.environ.get("AIMO_DISABLE", "")
    return feature in (name.strip().lower() for name in listed.split(","))
