"""Batches made ahead by threads come back in order, errors in their place."""

import threading

import pytest

from ai_model_optimizations.embedding.pipeline import in_order


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_items_come_back_in_order_with_what_was_made_of_them(ahead: int) -> None:
    assert list(in_order(str, range(20), ahead=ahead)) == [(i, str(i)) for i in range(20)]
    assert list(in_order(str, [], ahead=ahead)) == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_in_its_place(ahead: int) -> None:
    results = in_order(lambda i: 10 // (2 - i), range(5), ahead=ahead)
    assert next(results) == (0, 5) and next(results) == (1, 10)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []
    results = in_order(made.append, range(100), ahead=2)
    next(results)
    assert len(made) <= 3
    results.close()
    assert len(made) <= 3


def test_threads_end_when_the_caller_stops_early() -> None:
    results = in_order(str, range(100), ahead=2)
    next(results)
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("aimo-tokenize")]
