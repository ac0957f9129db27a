"""A list of floats that remembers which model made it.

Older interfaces pass vectors as plain lists, so vectors of two models of the same dimension can be
mixed without an error. :class:`Embedding` is such a list with the model's ``space_id`` attached.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..errors import SpaceMismatchError


class Embedding(list[float]):
    """One vector as a list of Python floats, with the ``space_id`` of the model that made it.

    It compares, slices, pickles and serialises to JSON like any list; a slice or a sum is a plain
    list again, because part of a vector is not a vector of that space.

    Parameters
    ----------
    values : the vector's numbers
    space_id : the space of the vector; None if the model does not say
    """

    __slots__ = ("space_id",)

    def __init__(self, values: Iterable[float] = (), space_id: str | None = None) -> None:
        super().__init__(values)
        self.space_id = space_id

    @classmethod
    def from_array(cls, vector: NDArray[np.floating], space_id: str | None) -> Embedding:
        """Make one from a (dim,) array.

        Raises
        ------
        ValueError
            If `vector` is not one-dimensional.
        """
        if vector.ndim != 1:
            raise ValueError(f"vector: expected shape (dim,), got {vector.shape}")
        return cls(vector.tolist(), space_id)

    def to_array(self) -> NDArray[np.float32]:
        """Return the vector as a (dim,) float32 array."""
        return np.asarray(self, dtype=np.float32)

    def __reduce__(self) -> tuple[type[Embedding], tuple[list[float], str | None]]:
        return type(self), (list(self), self.space_id)


def check_space(expected: str | None, vector: object, what: str = "vector") -> None:
    """Raise when `vector` says that it comes from another space than `expected`.

    A vector that does not say (a bare array or list) passes; its dimension is the caller's to
    check.

    Raises
    ------
    SpaceMismatchError
        If both spaces are known and differ.
    """
    found = getattr(vector, "space_id", None)
    if expected is not None and found is not None and found != expected:
        raise SpaceMismatchError(
            f"{what}: made by a model of space {found!r}, expected space {expected!r}; "
            "vectors of two models cannot be compared"
        )
