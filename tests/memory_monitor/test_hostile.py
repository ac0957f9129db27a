"""The monitor runs no code of the objects that it finds."""

import functools
import gc
import importlib.util
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import hostile_zoo
import pytest

from ai_model_optimizations.memory_monitor import (
    MemoryLeakDetector,
    MemoryMonitor,
    census,
    get_memory_status,
    memory_monitor,
    metrics,
)


def scans() -> dict[str, Callable[[], Any]]:
    detector = MemoryLeakDetector()
    return {
        "tick": memory_monitor._tick,
        "status": get_memory_status,
        "history": memory_monitor.get_memory_history,
        "breakdown": lambda: memory_monitor.breakdown(pss=True),
        "cycles": detector.check_circular_references,
        "unreachable": detector.count_unreachable_objects,
        "large objects": lambda: detector.analyze_large_objects(0.001),
        "resources": detector.check_unclosed_resources,
        "census": lambda: census.take(buffers=True),
        "json": metrics.to_json,
    }


@pytest.mark.parametrize("name", scans())
def test_no_scan_calls_any_method_of_the_zoo(name: str, monitor: MemoryMonitor) -> None:
    gc.collect()
    gc.disable()  # an earlier zoo must not die, and call its __del__, during the scan
    try:
        zoo = hostile_zoo.build()
        scans()[name]()
        calls = list(hostile_zoo.CALLS)
    finally:
        gc.enable()
    assert calls == [], calls
    assert monitor.errors == 0
    assert type(zoo) is list


def test_tracking_a_hostile_object_calls_none_of_its_methods(monitor: MemoryMonitor) -> None:
    animal: Any = object.__new__(hostile_zoo.Hostile)
    hostile_zoo.CALLS.clear()
    monitor.track_object(animal)
    assert monitor.tracked_objects() == {"Hostile": 1}
    assert monitor.untrack_object(animal)
    assert hostile_zoo.CALLS == []


def test_other_argument_must_be_k_instance_is_not_raised_and_the_whole_heap_is_seen() -> None:
    """The error that ended older monitors' passes; here the pass goes on and counts the object."""
    key = functools.cmp_to_key(lambda _a, _b: 0)(1)
    with pytest.raises(TypeError, match="other argument must be K instance"):
        assert key in [object()]
    cycle: list[Any] = [key]
    cycle.append(cycle)
    counted = {entry.name: entry.count for entry in census.take().by_type}
    assert counted["functools.KeyWrapper"] >= 1
    found = MemoryLeakDetector().check_circular_references(limit=10_000)
    assert any(group["types"] == {"list": 1} and group["reachable"] for group in found)


def test_a_class_whose_namespace_has_keys_that_compare_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = type("OddNamespace", (), {hostile_zoo.EqualToAnything("odd"): 1})
    instance: Any = odd()
    instance.me = instance
    monkeypatch.setattr(hostile_zoo.EqualToAnything, "armed", True)
    hostile_zoo.CALLS.clear()
    found = MemoryLeakDetector().check_circular_references(limit=10_000)
    names = {name for group in found for name in group["types"]}
    assert hostile_zoo.CALLS == []
    assert any("OddNamespace" in name for name in names)


def test_a_scan_keeps_nothing_alive_and_finalizes_nothing_on_its_thread() -> None:
    finalized: list[int] = []

    class Mortal:
        def __del__(self) -> None:
            finalized.append(threading.get_ident())

    mortals = [Mortal() for _ in range(100)]
    for mortal in mortals:
        mortal.me = mortal
    before = sys.getrefcount(mortals[0])
    scanner = threading.Thread(target=lambda: [scan() for scan in scans().values()])
    scanner.start()
    scanner.join()
    after = sys.getrefcount(mortals[0])  # not in the assert: pytest keeps what stands there
    assert after == before
    assert finalized == []
    del mortals, mortal
    gc.collect()
    assert len(finalized) == 100


def test_scans_are_right_while_other_threads_build_and_drop_objects() -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        try:
            while not stop.is_set():
                # A tuple under construction must not be seen with a reference too many.
                built = tuple([i] for i in range(50))
                node: dict[str, Any] = {"built": built}
                node["me"] = node
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 3
    detector = MemoryLeakDetector()
    while time.monotonic() < deadline:
        detector.count_unreachable_objects()
        detector.analyze_large_objects(1)
        census.take()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_long_chain_does_not_overflow_the_stack() -> None:
    chain: list[Any] = []
    for _ in range(300_000):
        chain = [chain]
    assert MemoryLeakDetector().count_unreachable_objects() >= 0
    while chain:  # taken apart in order, as its own deallocation would be by steps too
        chain = chain.pop()


_SCAN_ALL = """
from ai_model_optimizations.memory_monitor import *
from ai_model_optimizations.memory_monitor import census
detector = MemoryLeakDetector()
memory_monitor._tick()
assert memory_monitor.breakdown().python_objects > 0
assert isinstance(detector.check_circular_references(), list)
assert isinstance(detector.analyze_large_objects(0.1), list)
assert isinstance(detector.check_unclosed_resources(), list)
assert census.take(buffers=True).total_objects > 1000
assert memory_monitor.errors == 0
"""


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed")


@needs("sympy")
def test_a_process_with_sympy_is_scanned(run_python: Callable[..., str]) -> None:
    code = "import warnings\nwith warnings.catch_warnings():\n"
    code += "    warnings.simplefilter('ignore')\n    import sympy\n"
    run_python(code + _SCAN_ALL)


@pytest.mark.slow
@needs("sentence_transformers")
def test_a_process_with_sentence_transformers_is_scanned(run_python: Callable[..., str]) -> None:
    code = "import warnings\nwith warnings.catch_warnings():\n"
    code += "    warnings.simplefilter('ignore')\n    import sentence_transformers\n"
    run_python(code + _SCAN_ALL, timeout=300)


@pytest.mark.slow
@needs("torch")
def test_tensors_under_raising_modes_are_scanned_without_one_dispatch(
    run_python: Callable[..., str],
) -> None:
    """Fake, meta and sparse tensors, a subclass, Mock(spec=Tensor), lazy modules."""
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
from unittest.mock import Mock

seen = []
class Function(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        seen.append(function); raise KeyboardInterrupt
class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        seen.append(function); raise KeyboardInterrupt
class Sub(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        seen.append(function); raise KeyboardInterrupt

with FakeTensorMode():
    fake = torch.empty(1000)
kept = [torch.ones(1 << 20), torch.nn.Parameter(torch.ones(10)), fake,
        torch.empty(3, device="meta"), torch.eye(3).to_sparse(), torch.nn.LazyLinear(3),
        torch.ones(2).as_subclass(Sub), Mock(spec=torch.Tensor)]
kept.append(kept[0][:10])
with Function(), Dispatch():
    SCAN
    split = memory_monitor.breakdown()
assert seen == [], seen
assert 4 << 20 <= split.torch_cpu < 6 << 20, split.torch_cpu
assert split.gpus == ()
assert not torch.cuda.is_initialized()
""".replace("    SCAN\n", "".join(f"    {line}\n" for line in _SCAN_ALL.strip().splitlines()))
    run_python(code, timeout=300)


def test_a_fork_beside_the_running_monitor_is_no_deadlock(run_python: Callable[..., str]) -> None:
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ai_model_optimizations.memory_monitor import *
setup_memory_monitoring(check_interval=0.001)
for _ in range(20):
    child = os.fork()
    if child == 0:
        status = get_memory_status()
        os._exit(0 if status["monitoring_active"] else 1)
    assert os.waitpid(child, 0)[1] == 0
"""
    run_python(code)


# An object that shows a reference once to the first who asks and a thousand times to the next, as
# tensors do on a smaller scale: what those show depends on how many threads of C++ hold them.
_FICKLE = """
import ctypes
import gc

from ai_model_optimizations import _core

gc.collect()
gc.disable()
VISIT = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
TRAVERSE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, VISIT, ctypes.c_void_p)


class Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("sizes", ctypes.c_int * 2),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.c_void_p),
    ]


target = []
shown = 1


def show(self, visit, argument):
    global shown
    for _ in range(shown):
        visit(target, argument)
    shown *= 1000
    return 0


traverse = TRAVERSE(show)
slots = (Slot * 2)(Slot(71, ctypes.cast(traverse, ctypes.c_void_p)))
spec = Spec(b"fickle.Fickle", (16, 0), 1 << 18 | 1 << 14, ctypes.addressof(slots))
make = ctypes.pythonapi.PyType_FromSpec
make.restype = ctypes.py_object
fickle = make(ctypes.byref(spec))()
for _ in range(3):
    shown = 1
    _core.heap_cycles()
    assert shown == 1000 ** 2
del fickle
"""


def test_an_object_that_shows_more_references_the_second_time_is_no_overflow(
    run_python: Callable[..., str],
) -> None:
    run_python(_FICKLE)


def test_nothing_in_the_process_imports_torch_for_the_monitor(
    run_python: Callable[..., str],
) -> None:
    code = _SCAN_ALL + "import sys\nassert 'torch' not in sys.modules"
    run_python(code)
