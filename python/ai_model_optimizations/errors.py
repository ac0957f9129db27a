"""The package's exceptions.

Errors that Python already has a name for are raised as that: ``TypeError``, ``ValueError``,
``MemoryError``, ``OSError``. Everything below is an :class:`AimoError` as well.
"""

from __future__ import annotations


class AimoError(Exception):
    """Base of the exceptions that this package defines."""


class ModelFormatError(AimoError, ValueError):
    """A model file, folder or buffer is not what it says; the message names it."""


class CacheFileError(AimoError, ValueError):
    """A cache file is damaged or is none; the message says what can still be read."""


class ContentFileError(AimoError, ValueError):
    """A content file is not what it should be; the message names file, key and line."""


class SpaceMismatchError(AimoError, ValueError):
    """Vectors of two models, which must never be compared, were about to meet."""


class PrecisionError(AimoError, ValueError):
    """A quantized model's vectors differ more from the given one's than ``min_cosine`` allows."""


class UnsupportedError(AimoError, RuntimeError):
    """The feature is not built in, or this machine lacks what it needs."""


class DeviceError(AimoError, RuntimeError):
    """The accelerator or its libraries reported a failure."""


class QueueFull(AimoError, RuntimeError):  # noqa: N818 - the name users expect from queue.Full
    """More work is waiting than the queue may hold; retry later or raise its limit."""


class ClosedError(AimoError, RuntimeError):
    """The object was closed and takes no more work."""


class NoSuitableModelError(AimoError, LookupError):
    """No registered model meets a request's requirements; the message says why for each."""
