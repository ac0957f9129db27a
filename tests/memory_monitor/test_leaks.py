"""Cycles, large objects and open descriptors are found, named and measured."""

import gc
import io
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import _core
from ai_model_optimizations.memory_monitor import (
    MemoryLeakDetector,
    MemoryMonitor,
    breakdown,
    memory_monitor,
    process,
    workers,
)


class Node:
    def __init__(self) -> None:
        self.others: list[Any] = []


@pytest.fixture
def detector() -> MemoryLeakDetector:
    return MemoryLeakDetector()


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def cycles_of(detector: MemoryLeakDetector, name: str) -> list[dict[str, Any]]:
    found = detector.check_circular_references(limit=100_000)
    return [group for group in found if any(name in kind for kind in group["types"])]


def test_dropped_cycles_are_unreachable_and_grouped(
    detector: MemoryLeakDetector, no_collection: None
) -> None:
    assert detector.count_unreachable_objects() == 0
    for _ in range(30):
        a, b = Node(), Node()
        a.others.append(b)
        b.others.append(a)
    del a, b
    (group,) = cycles_of(detector, "Node")
    assert group["types"]["list"] == 2
    assert (group["cycles"], group["reachable"]) == (30, False)
    assert group["size_mb"] > 0
    assert detector.count_unreachable_objects() >= 30 * 4
    gc.collect()
    assert detector.count_unreachable_objects() == 0
    assert cycles_of(detector, "Node") == []


def test_what_the_collector_would_free_is_exactly_what_is_counted(
    detector: MemoryLeakDetector, no_collection: None
) -> None:
    for i in range(100):
        node = Node()
        node.others.append(node)
        node.others.append([[i]])  # hangs from the cycle and dies with it
    del node
    counted = detector.count_unreachable_objects()
    assert counted == gc.collect() > 0


def test_a_living_cycle_is_reachable(detector: MemoryLeakDetector) -> None:
    node = Node()
    node.others.append(node)
    (group,) = cycles_of(detector, "Node")
    assert group["reachable"] is True
    assert len(node.others) == 1


def test_a_cycle_held_from_one_variable_only_is_alive(
    detector: MemoryLeakDetector, no_collection: None
) -> None:
    held: Any = {}
    held["list"] = [held]
    assert detector.count_unreachable_objects() == 0


def test_objects_without_a_cycle_are_not_reported(detector: MemoryLeakDetector) -> None:
    class Leaf:
        pass

    leaves = [Leaf() for _ in range(10)]
    groups = cycles_of(detector, "Leaf")
    assert groups == [] and len(leaves) == 10


def test_the_number_of_groups_is_limited(detector: MemoryLeakDetector) -> None:
    first: Any = []
    first.append(first)
    second: Any = {}
    second["me"] = second
    assert len(detector.check_circular_references(limit=1)) == 1
    for wrong in (0, -1, True, 1.5, "5"):
        with pytest.raises(ValueError, match="limit"):
            detector.check_circular_references(limit=wrong)  # type: ignore[arg-type]


MODULE_STATE: dict[str, Any] = {}


LARGE: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"x" * (12 << 20),
    "str": lambda: "\u00fc" * (12 << 20),
    "bytearray": lambda: bytearray(12 << 20),
    "list": lambda: [None] * (2 << 20),
    "tuple": lambda: (None,) * (2 << 20),
    "int": lambda: 1 << (100 << 20),
    "dict": lambda: dict.fromkeys(range(1 << 19)),
    "set": lambda: set(range(1 << 19)),
    "numpy.ndarray": lambda: np.zeros(2 << 20),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_objects_are_found_with_their_size(detector: MemoryLeakDetector, name: str) -> None:
    MODULE_STATE["held"] = {"deep": LARGE[name]()}  # a dict of such values is not tracked itself
    size = sys.getsizeof(MODULE_STATE["held"]["deep"])
    found = [entry for entry in detector.analyze_large_objects(10) if entry["type"] == name]
    MODULE_STATE.clear()
    assert any(abs(entry["size_mb"] - size / (1 << 20)) < 0.02 for entry in found)


def test_frames_generators_and_coroutines_have_sane_sizes(detector: MemoryLeakDetector) -> None:
    async def coroutine() -> None: ...

    def generator() -> Iterator[Any]:
        yield sys._getframe()

    running = generator()
    held = [running, next(running), coroutine(), Node]
    held[2].close()
    *_, listed, _ = _core.heap_summary((), 0)
    assert max(size for _, size in listed) < 1 << 30
    assert len(held) == 4


def test_views_do_not_count_twice(detector: MemoryLeakDetector) -> None:
    array = np.zeros(6 << 20)
    MODULE_STATE["views"] = [array, array[1:], array.reshape(2, -1)]
    found = [e for e in detector.analyze_large_objects(40) if e["type"] == "numpy.ndarray"]
    MODULE_STATE.clear()
    assert len(found) == 1


def test_sizes_of_small_builtins_are_pythons() -> None:
    values: list[Any] = [[], [1], (), (1, 2), "", "abc", "ü", "\U0001f600", b"", b"abc", 1 << 70]
    values += [{}, {"a": 1}, set(), set(range(50)), frozenset(range(9)), bytearray(b"abc"), 1.5]
    values += [list(range(100)), {i: i for i in range(1000)}, object(), range(5), slice(1)]
    *_, listed, _ = _core.heap_summary((), 0)
    found = set(listed)
    for value in values:
        assert (type(value).__name__, sys.getsizeof(value)) in found, value


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_size_is_refused(
    detector: MemoryLeakDetector, threshold: float
) -> None:
    with pytest.raises(ValueError, match="threshold_mb"):
        detector.analyze_large_objects(threshold)


def test_nothing_is_larger_than_any_threshold(detector: MemoryLeakDetector) -> None:
    assert detector.analyze_large_objects(1e30) == []


def test_open_descriptors_are_listed_with_their_owner(
    detector: MemoryLeakDetector, tmp_path: Path
) -> None:
    path = tmp_path / "log.txt"
    leaked, other = os.pipe()
    with open(path, "w") as file, socket.socket() as sock, select.epoll() as poll:
        found = {entry["fd"]: entry for entry in detector.check_unclosed_resources()}
        assert found[file.fileno()] == {
            "fd": file.fileno(),
            "kind": "file",
            "target": str(path),
            "owner": "_io.FileIO",
        }
        assert found[sock.fileno()]["owner"] == "socket.socket"
        assert found[sock.fileno()]["kind"] == "socket"
        assert found[poll.fileno()]["owner"] == "select.epoll"
        assert (found[leaked]["kind"], found[leaked]["owner"]) == ("pipe", None)
        closed = file.fileno()
    os.close(leaked)
    os.close(other)
    assert closed not in {entry["fd"] for entry in detector.check_unclosed_resources()}
    assert detector.descriptor_limit() is None or detector.descriptor_limit() > 0  # type: ignore[operator]


def test_a_closed_file_object_owns_nothing(detector: MemoryLeakDetector) -> None:
    file = io.FileIO(os.devnull)
    number = file.fileno()
    file.close()
    reused = os.open(os.devnull, os.O_RDONLY)
    found = {entry["fd"]: entry["owner"] for entry in detector.check_unclosed_resources()}
    os.close(reused)
    assert reused != number or found[reused] is None


# ---- breakdown ----


def test_the_split_sees_each_owner(monitor: MemoryMonitor) -> None:
    before = monitor.breakdown()
    held = {"array": np.ones(4 << 20), "text": "x" * (20 << 20)}
    MODULE_STATE["held"] = held
    after = monitor.breakdown(pss=True)
    MODULE_STATE.clear()
    assert before.numpy is not None and after.numpy is not None
    assert before.python_objects is not None and after.python_objects is not None
    assert after.numpy - before.numpy == 32 << 20
    assert abs(after.python_objects - before.python_objects - (20 << 20)) < 1 << 20
    assert after.pss is not None and 0 < after.pss <= after.rss + (1 << 20)
    assert after.unattributed is not None and before.unattributed is not None
    assert abs(after.unattributed - before.unattributed) < 12 << 20


def test_the_split_of_python_objects_is_near_the_sum_of_their_sizes() -> None:
    held = [[str(i)] for i in range(100_000)]
    before = breakdown.take()
    size = sum(sys.getsizeof(x) + sys.getsizeof(x[0]) for x in held) + sys.getsizeof(held)
    del held
    after = breakdown.take()
    assert before.python_objects is not None and after.python_objects is not None
    assert before.python_objects - after.python_objects == pytest.approx(size, rel=0.05)


def test_without_the_walk_nothing_is_claimed() -> None:
    split = breakdown.take(objects=False)
    assert (split.objects, split.python_objects, split.unattributed, split.pss) == (None,) * 4
    assert split.rss > 0
    assert set(split.to_dict()) == set(breakdown.take().to_dict())


def test_retained_memory_is_seen_and_given_back() -> None:
    figures = process.allocator()
    if figures["name"] != "glibc":
        pytest.skip(f"the allocator is {figures['name']}")
    # Blocks below the mmap threshold, pinned by a last one: freed, they stay in the heap.
    blocks = [np.ones(8000) for _ in range(1000)]
    pin = np.ones(8000)
    full = process.allocator()
    del blocks
    freed = process.allocator()
    assert freed["retained"] - full["retained"] > 32 << 20
    resident = process.memory().anonymous
    assert memory_monitor.trim()
    assert resident - process.memory().anonymous > 32 << 20
    assert pin.sum() == 8000


def test_workers_beside_and_below_are_listed(run_python: Any) -> None:
    run_python("""
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ai_model_optimizations.memory_monitor import workers
children, held = [], bytearray(b"x" * (50 << 20))
for _ in range(2):
    child = os.fork()
    if child == 0:
        time.sleep(60); os._exit(0)
    children.append(child)
found = {worker.pid: worker for worker in workers()}
assert set(children) <= found.keys(), found
assert found[os.getpid()].role == "self" and found[children[0]].role == "child"
# Shared pages count in parts: each resident set is large, each proportional one is not.
assert all(found[child].pss < found[child].rss - (20 << 20) for child in children), found
for child in children:
    os.kill(child, 9); os.waitpid(child, 0)
assert not set(children) & {worker.pid for worker in workers()}
""")


def test_this_process_is_among_its_workers() -> None:
    assert os.getpid() in {worker.pid for worker in workers()}


def test_without_proc_the_figures_come_from_psutil(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("psutil")
    real = process.memory()
    monkeypatch.setattr(process, "PROC", str(tmp_path))
    portable = process.memory()
    assert abs(portable.rss - real.rss) < 8 << 20
    assert portable.threads == real.threads
    assert process.proportional_bytes() is None
