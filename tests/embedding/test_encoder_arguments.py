"""The core's encoder is made from what its arguments were when they were given."""

from __future__ import annotations

from typing import Any

import pytest

from ai_model_optimizations import _core


class Meddler:
    """A number that empties a list while somebody asks for its value."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __index__(self) -> int:
        self.items.clear()
        self.others = [(object(),) * 3 for _ in range(100)]  # where the items may have been
        return 64


def make(**changed: Any) -> _core.Encoder:
    arguments: dict[str, Any] = {
        "dtype": "f32",
        "layers": 1,
        "hidden": 64,
        "heads": 1,
        "intermediate": 64,
        "vocabulary": 10,
        "positions": 10,
        "token_types": 1,
        "first_position": 0,
        "activation": "gelu",
        "poolings": ["mean"],
        "layer_norm_epsilon": 1e-5,
        "dense": [],
    }
    return _core.Encoder(**(arguments | changed))


def test_a_list_that_is_emptied_while_it_is_read_is_read_to_its_end() -> None:
    dense: list[Any] = []
    dense += [(Meddler(dense), 64, "".join(["ta", "nh"])), (64, int("32"), "none")]
    assert make(dense=dense).dimension == 32
    assert dense == []


def test_any_sequence_will_do_and_nothing_else() -> None:
    assert make(dense=((64, 16, "tanh"),), poolings=("cls",)).dimension == 16
    for name in "dense", "poolings":
        with pytest.raises(TypeError, match=f"{name}: expected a sequence"):
            make(**{name: 5})
