"""The package's exceptions.

Where a built-in exception fits (``TypeError``, ``ValueError``, ``MemoryError``, ``OSError``), it is
raised. Every exception defined here derives from :class:`AimoError`.
"""

from __future__ import annotations


class AimoError(Exception):
    """Base of the exceptions that this package defines."""


class ModelFormatError(AimoError, ValueError):
    """A model file, folder or buffer is malformed; the message names it."""


class CacheFileError(AimoError, ValueError):
    """A file is damaged or not a cache file; the message says what can still be read."""


class ContentFileError(AimoError, ValueError):
    """A content file is malformed; the message names the file, key and line."""


class SpaceMismatchError(AimoError, ValueError):
    """Vectors of different models, which must never be compared, were passed together."""


class PrecisionError(AimoError, ValueError):
    """A quantized model's vectors differ from the original's by more than ``min_cosine`` allows."""


class UnsupportedError(AimoError, RuntimeError):
    """The feature was not built, or this machine lacks something it needs."""


class DeviceError(AimoError, RuntimeError):
    """The accelerator or its libraries reported a failure."""


class QueueFull(AimoError, RuntimeError):  # noqa: N818 - the name users expect from queue.Full
    """The queue is full; retry later or raise its limit."""


class ClosedError(AimoError, RuntimeError):
    """The object has been closed and accepts no more work."""


class NoSuitableModelError(AimoError, LookupError):
    """No registered model meets a request's requirements; the message says why for each."""
