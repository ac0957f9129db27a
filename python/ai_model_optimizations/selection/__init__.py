"""Choosing a model for each request."""

from .language import detect_language
from .profile import LatencyProfile
from .selector import AdaptiveModelSelector, Selection

__all__ = ["AdaptiveModelSelector", "LatencyProfile", "Selection", "detect_language"]
