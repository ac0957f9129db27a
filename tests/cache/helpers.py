"""What the cache's tests share: a clock, vectors of known cosine, an embedder, a serializer."""

import math
from types import SimpleNamespace

import numpy as np


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def at_angle(cosine, dim=8, plane=0):
    """A float32 vector whose cosine with ``at_angle(1)`` of the same plane is `cosine`."""
    vector = np.zeros(dim, np.float32)
    vector[2 * plane] = cosine
    vector[2 * plane + 1] = math.sqrt(max(0.0, 1 - cosine * cosine))
    return vector


class TableEmbedder:
    """Embeds the texts it was given vectors for, and counts its calls."""

    space_id = "table-1"

    def __init__(self, vectors):
        self.vectors = vectors
        self.calls = []

    def encode(self, texts):
        self.calls.append(list(texts))
        return np.stack([self.vectors[text] for text in texts])


class Unreadable:
    """A serializer that cannot read what begins with "bad"."""

    def dumps(self, value):
        return value.name.encode()

    def loads(self, data):
        if data.startswith(b"bad"):
            raise KeyError("a field of an older version")
        return SimpleNamespace(name=data.decode())


BAD, GOOD = SimpleNamespace(name="bad"), SimpleNamespace(name="good")
