"""Choosing a model for each request."""

from .choice import Selection
from .language import detect_language
from .profile import LatencyProfile
from .selector import AdaptiveModelSelector

__all__ = ["AdaptiveModelSelector", "LatencyProfile", "Selection", "detect_language"]
