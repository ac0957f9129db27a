"""Allocation sampling: right sites, honest numbers, and calm in hostile surroundings."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import ai_model_optimizations.memory_monitor.allocations as allocations
from ai_model_optimizations import _core
from ai_model_optimizations.errors import UnsupportedError
from ai_model_optimizations.memory_monitor.allocations import Frame, Site, Snapshot

EXACT = 1  # sample_bytes: everything but the smallest blocks is a sample
LARGE = 64 << 10  # the least sample_bytes with which the frees of small blocks are not wrapped
needs_pymalloc = pytest.mark.skipif(
    os.environ.get("PYTHONMALLOC", "").startswith("malloc"), reason="no small-object allocator"
)


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    allocations.stop()
    tracemalloc.stop()
    yield
    allocations.stop()
    tracemalloc.stop()


def run_python(source: str, *, env: dict[str, str] | None = None, quiet: bool = True) -> str:
    """Output of a fresh interpreter, which must end well and, if `quiet`, without a warning."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, f"{result.returncode}: {result.stderr}"
    assert result.stderr == "" or not quiet
    return result.stdout.strip()


def make_blocks(count: int, size: int) -> list[bytes]:
    return [bytes(size) for _ in range(count)]


def of_function(snapshot: Snapshot, function: str) -> Snapshot:
    """The part of a snapshot that lies below a function of this file."""
    sites = tuple(
        site
        for site in snapshot.sites
        if any(f.filename == __file__ and f.function == function for f in site.traceback)
    )
    return Snapshot(0.0, sites, (), 0, 0, 0, "")


# Sites


def test_a_site_names_file_line_and_function_of_the_whole_stack() -> None:
    allocations.start(EXACT)
    kept = make_blocks(50, 1000)
    here = sys._getframe().f_lineno - 1
    snapshot = of_function(allocations.snapshot(), "make_blocks")
    innermost = make_blocks.__code__.co_firstlineno + 1
    assert len(kept) == 50 and snapshot.sites
    stack = snapshot.sites[0].traceback
    assert Frame(__file__, here, sys._getframe().f_code.co_name) in stack
    assert (stack[-1].filename, stack[-1].line) == (__file__, innermost)
    assert "make_blocks" in {frame.function for frame in stack}


def test_freed_blocks_leave_and_live_ones_stay() -> None:
    allocations.start(EXACT)
    kept, dropped = make_blocks(100, 1000), make_blocks(900, 1000)
    both = of_function(allocations.snapshot(), "make_blocks").live_bytes
    del dropped
    one = of_function(allocations.snapshot(), "make_blocks").live_bytes
    assert 1000 * 1000 <= both <= 1100 * 1000
    assert 100 * 1000 <= one <= 110 * 1000
    del kept
    assert of_function(allocations.snapshot(), "make_blocks").live_bytes == 0


def test_memory_older_than_the_start_is_not_counted_when_it_is_freed() -> None:
    old = make_blocks(1000, 1000)
    allocations.start(EXACT)
    before = allocations.status().live_bytes
    del old
    assert 0 <= allocations.status().live_bytes <= before + 100_000


def grow_list(count: int) -> list[int]:
    grown: list[int] = []
    for _ in range(count):
        grown.append(0)
    return grown


def test_a_grown_list_counts_its_table_once() -> None:
    allocations.start(EXACT)
    grown = grow_list(1_000_000)
    snapshot = of_function(allocations.snapshot(), "grow_list")
    assert len(grown) == 1_000_000
    assert snapshot.live_bytes == pytest.approx(sys.getsizeof(grown), rel=0.01)


def test_buffers_of_numpy_pass_elsewhere() -> None:
    allocations.start(EXACT)
    arrays = [np.ones(1_000_000) for _ in range(4)]
    assert sum(a.nbytes for a in arrays) == 32_000_000
    assert allocations.snapshot().live_bytes < 1_000_000


def recurse(depth: int, size: int) -> list[bytes]:
    return make_blocks(20, size) if depth == 0 else recurse(depth - 1, size)


@pytest.mark.parametrize("frames", [0, 1, 3, 64])
def test_stacks_are_cut_to_the_wanted_depth(frames: int) -> None:
    allocations.start(EXACT, frames)
    kept = recurse(200, 1000)
    snapshot = allocations.snapshot()
    largest = snapshot.sites[0]
    assert len(kept) == 20 and largest.live_bytes >= 20_000
    assert max(len(site.traceback) for site in snapshot.sites) == frames
    assert len(largest.traceback) == frames
    if frames == 64:
        assert [f.function for f in largest.traceback[:50]] == ["recurse"] * 50


def test_generators_coroutines_and_comprehensions_have_their_frames() -> None:
    def generate() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(2000)

    async def await_blocks() -> list[bytes]:
        return [bytes(3000) for _ in range(30)]

    allocations.start(EXACT)
    coroutine = await_blocks()
    generated, awaited = list(generate()), None
    try:
        coroutine.send(None)
    except StopIteration as stop:
        awaited = stop.value
    snapshot = allocations.snapshot()
    functions = {
        f.function.rpartition(".<locals>.")[2] or f.function
        for s in snapshot.sites
        if s.live_bytes > 50_000
        for f in s.traceback
    }
    assert len(generated) == 30 and awaited is not None
    assert any("generate" in name for name in functions)
    joined = ";".join(str(f) for s in snapshot.sites for f in s.traceback)
    assert "await_blocks" in joined


def test_sites_agree_with_tracemalloc_line_by_line() -> None:
    tracemalloc.start(1)
    allocations.start(EXACT)
    kept = [make_blocks(100, 700), grow_list(50_000), [{"k": i} for i in range(2000)]]
    ours: Counter[int] = Counter()
    for site in allocations.snapshot().filtered(__file__).sites:
        ours[site.traceback[-1].line] += site.live_bytes
    theirs = {
        s.traceback[0].lineno: s.size
        for s in tracemalloc.take_snapshot().statistics("lineno")
        if s.traceback[0].filename == __file__
    }
    large = {line: size for line, size in theirs.items() if size > 50_000}
    assert len(kept) == 3 and len(large) >= 3
    for line, size in large.items():
        assert ours[line] == pytest.approx(size, rel=0.03), line


# Numbers


def test_estimates_are_within_their_errors() -> None:
    truth, within_one, within_two, runs = 0, 0, 0, 40
    for seed in range(runs):
        _core.memhook_start(64 << 10, 4, seed)
        kept = make_blocks(20_000, 333)
        truth = sum(map(sys.getsizeof, kept))
        site = of_function(allocations.snapshot(), "make_blocks")
        error = abs(site.live_bytes - truth - sys.getsizeof(kept))
        within_one += error <= site.standard_error
        within_two += error <= 2 * site.standard_error
        assert error <= 5 * site.standard_error
        allocations.stop()
    # 68% and 95%, less 4.5 binomial standard deviations.
    assert within_one >= 0.35 * runs and within_two >= 0.8 * runs


@pytest.mark.slow
def test_a_site_of_100_mb_is_within_10_percent_in_95_of_100_runs() -> None:
    right = 0
    for seed in range(100):
        _core.memhook_start(128 << 10, 8, seed)
        kept = make_blocks(100_000, 967)  # 1000 bytes each
        site = of_function(allocations.snapshot(), "make_blocks")
        truth = 100_000_000 + sys.getsizeof(kept)
        right += abs(site.live_bytes - truth) <= 0.1 * truth
        allocations.stop()
    assert right >= 95


def test_the_peak_keeps_the_sites_of_its_moment() -> None:
    allocations.start(EXACT)
    blocks = make_blocks(5000, 1000)
    del blocks
    kept = make_blocks(100, 1000)
    snapshot = allocations.snapshot()
    assert len(kept) == 100
    assert snapshot.peak_bytes >= 5_000_000 > snapshot.live_bytes
    peak = snapshot.at_peak()
    assert of_function(peak, "make_blocks").live_bytes >= 5_000_000
    assert peak.live_bytes == pytest.approx(snapshot.peak_bytes, rel=0.001)


def test_compare_names_the_site_that_grew() -> None:
    allocations.start(EXACT)
    older = allocations.snapshot()
    kept = make_blocks(3000, 1000)
    changes = allocations.snapshot().compare(older)
    assert len(kept) == 3000
    assert changes[0].live_bytes >= 3_000_000 and changes[0].is_significant
    assert changes[0].traceback[-1].filename == __file__
    assert older.compare(older) and all(c.live_bytes == 0 for c in older.compare(older))


# Views of a snapshot


def example() -> Snapshot:
    main, work = Frame("/app/main.py", 3, "main"), Frame("/lib/work.py", 9, "work;er")
    sites = (
        Site((main, work), 3000, 30, 300.0, 3),
        Site((main, Frame("/lib/work.py", 11, "work;er")), 2000, 20, 400.0, 2),
        Site((main,), 1000, 10, 100.0, 1),
        Site((), 500, 5, 50.0, 1),
    )
    return Snapshot(0.0, sites, sites[:1], 9000, 128, 8, "")


def test_grouping_adds_bytes_and_errors() -> None:
    functions = example().grouped("function").sites
    assert [(str(s), s.live_bytes, s.live_blocks, s.samples) for s in functions] == [
        ("/lib/work.py (work;er)", 5000, 50, 5),
        ("/app/main.py (main)", 1000, 10, 1),
        (allocations.UNKNOWN, 500, 5, 1),
    ]
    assert functions[0].standard_error == pytest.approx(500.0)
    assert [str(s) for s in example().grouped("file").sites][:2] == ["/lib/work.py", "/app/main.py"]
    assert len(example().grouped("line").sites) == 4
    with pytest.raises(ValueError, match="by: expected"):
        example().grouped("module")  # type: ignore[arg-type]


def test_filters_match_paths_of_the_innermost_or_of_all_frames() -> None:
    snapshot = example()
    assert snapshot.filtered("/lib/*").live_bytes == 5000
    assert snapshot.filtered(exclude="/lib/*").live_bytes == 1500
    assert snapshot.filtered(["/app/*", "/lib/*"], allow := ()).live_bytes == 6000 and allow == ()
    assert snapshot.filtered("/app/*", all_frames=True).live_bytes == 6000
    assert snapshot.filtered("/lib/*").at_peak().live_bytes == 3000
    assert snapshot.filtered("nothing").sites == ()


def test_collapsed_stacks_have_one_line_per_site_and_no_stray_separator() -> None:
    lines = example().collapsed().splitlines()
    assert lines[0] == "/app/main.py:3 (main);/lib/work.py:9 (work:er) 3000"
    assert lines[3] == f"{allocations.UNKNOWN} 500"
    assert len(lines) == 4


def test_table_and_json_tell_the_same_story() -> None:
    snapshot = example()
    table = snapshot.table(limit=2)
    assert "2.9 KiB" in table and "2 more sites" in table and "6.3 KiB" in table
    document = json.loads(json.dumps(snapshot.to_dict(limit=2)))
    assert document["live_bytes"] == snapshot.live_bytes == 6500
    assert [site["live_bytes"] for site in document["sites"]] == [3000, 2000]
    assert document["standard_error"] == round(math.sqrt(300**2 + 400**2 + 100**2 + 50**2))


# Samples that are made large


def kept_and_freed() -> tuple[float, float, float]:
    """Live bytes of 100,000 small blocks, of a tenth of them, and of none."""
    kept = make_blocks(100_000, 100)
    readings = [of_function(allocations.snapshot(), "make_blocks").live_bytes]
    del kept[10_000:]
    readings.append(of_function(allocations.snapshot(), "make_blocks").live_bytes)
    kept.clear()
    readings.append(of_function(allocations.snapshot(), "make_blocks").live_bytes)
    return readings[0], readings[1], readings[2]


@needs_pymalloc
def test_small_blocks_are_followed_without_a_wrapper_around_their_frees() -> None:
    _core.memhook_start(LARGE, 8, 1)
    assert _core.memhook_info()["samples_are_large"]
    everything, tenth, nothing = kept_and_freed()
    truth = 100_000 * sys.getsizeof(bytes(100))
    assert everything == pytest.approx(truth, rel=0.4)
    assert 0 < tenth < 0.3 * everything
    assert nothing == 0


def test_samples_that_lie_close_are_followed_by_their_own_frees() -> None:
    allocations.start(LARGE - 1)
    assert not _core.memhook_info()["samples_are_large"]
    everything, tenth, nothing = kept_and_freed()
    assert 0 < tenth < 0.3 * everything and nothing == 0


@needs_pymalloc
def test_blocks_allocated_as_samples_count_once_in_the_interpreter() -> None:
    before = sys.getallocatedblocks()
    allocations.start(LARGE)
    kept = make_blocks(100_000, 100)
    held = sys.getallocatedblocks() - before
    allocations.stop()
    del kept
    assert held == pytest.approx(100_000, rel=0.02)
    assert sys.getallocatedblocks() - before < 2000


@pytest.mark.parametrize("allocator", ["debug", "malloc", "malloc_debug"])
def test_over_an_allocator_without_large_blocks_every_free_is_wrapped(allocator: str) -> None:
    output = run_python(
        f"""
        from ai_model_optimizations import _core
        from ai_model_optimizations.memory_monitor import allocations
        allocations.start({LARGE})
        kept = [bytes(100) for _ in range(100_000)]
        held = allocations.status().live_bytes
        kept.clear()
        print(_core.memhook_info()["samples_are_large"], held > 5e6,
              allocations.status().live_bytes < held / 10)
        """,
        env={"PYTHONMALLOC": allocator},
    )
    assert output == "False True True"


def test_threads_free_raw_memory_without_the_gil_meanwhile() -> None:
    arrays = [np.arange(40_000.0) for _ in range(2)]
    ending = threading.Event()

    def sort() -> None:  # numpy sorts without the GIL
        while not ending.is_set():
            np.sort(arrays[0] * -1)
            os.listdir("/proc/self/fd")

    threads = [threading.Thread(target=sort) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        allocations.start(LARGE)
        assert kept_and_freed()[2] == 0
        allocations.stop()
    ending.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("first", [EXACT, LARGE])
def test_a_hook_left_below_tracemalloc_serves_the_next_start(first: int) -> None:
    allocations.start(first)
    tracemalloc.start()
    allocations.stop()
    for sample_bytes in (LARGE, EXACT, LARGE):
        allocations.start(sample_bytes)
        everything, tenth, nothing = kept_and_freed()
        assert 0 < tenth < 0.3 * everything and nothing == 0
        allocations.stop()
    tracemalloc.stop()
    allocations.start(EXACT)
    assert not _core.memhook_info()["samples_are_large"]


# Bad input and states


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sample_bytes": 0}, ValueError, "sample_bytes: expected 1 to"),
        ({"sample_bytes": -5}, ValueError, "sample_bytes: expected 1 to .*, got -5"),
        ({"sample_bytes": 1 << 200}, ValueError, "sample_bytes: expected 1 to"),
        ({"frames": 65}, ValueError, "frames: expected 0 to 64"),
        ({"frames": -1}, ValueError, "frames: expected 0 to 64"),
        ({"sample_bytes": 1.5}, TypeError, "sample_bytes: expected an int, got float"),
        ({"frames": True}, TypeError, "frames: expected an int, got bool"),
    ],
)
def test_a_bad_setting_is_named_and_nothing_starts(
    arguments: dict[str, int], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        allocations.start(**arguments)
    assert not allocations.status().running


def test_the_limits_are_those_of_the_hook() -> None:
    info = _core.memhook_info()
    limits = {"sample_bytes": info["max_sample_bytes"], "frames": info["max_frames"]}
    allocations.start(**limits)
    allocations.stop()
    for name, limit in limits.items():
        too_much = {**limits, name: limit + 1}
        message = rf"{name}: expected [01] to {limit}, got {limit + 1}"
        with pytest.raises(ValueError, match=message):
            allocations.start(**too_much)
        with pytest.raises(ValueError, match=message):
            _core.memhook_start(too_much["sample_bytes"], too_much["frames"], 1)


def test_starting_twice_is_harmless_but_not_with_other_settings() -> None:
    allocations.start(1000, 4)
    allocations.start(1000, 4)
    with pytest.raises(ValueError, match="sample_bytes=1000 and frames=4"):
        allocations.start(2000, 4)
    assert allocations.status().sample_bytes == 1000
    allocations.stop()
    allocations.stop()
    with pytest.raises(RuntimeError, match="not running"):
        allocations.snapshot()


def test_the_kill_switch_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIMO_DISABLE", "guard, hook")
    with pytest.raises(UnsupportedError, match="AIMO_DISABLE=guard, hook"):
        allocations.start()
    monkeypatch.setenv("AIMO_DISABLE", "hooks")
    allocations.start()


def test_the_hook_has_at_most_8_mb() -> None:
    assert allocations.status().memory_bytes <= 8_000_000


def test_ten_thousand_cycles_leave_nothing_behind() -> None:
    # In a process of its own: what other tests left running may allocate meanwhile.
    run_python(
        f"""
        import os, sys
        from ai_model_optimizations.memory_monitor import allocations
        def cycles(count):
            for _ in range(count):
                allocations.start({EXACT})
                allocations.stop()
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        cycles(500)
        references, before = sys.getrefcount(cycles.__code__), resident()
        cycles(10_000)
        assert sys.getrefcount(cycles.__code__) == references
        assert resident() - before < 2_000_000, resident() - before
        """
    )


def test_what_is_lacking_is_said() -> None:
    """On a CPython whose frames are not known the core gives a reason instead of stacks."""
    info = _core.memhook_info()
    said = allocations._note({**info, "frames_missing": "call stacks are known on CPython 3.10"})
    assert said == "no call sites: call stacks are known on CPython 3.10"
    said = allocations._note({**info, "dropped_samples": 3, "cut_stacks": 2})
    assert "3 samples found no place" in said and "2 samples are counted under" in said


# Code objects


def make_function() -> Callable[[], bytes]:
    """A function of its own code; bytes, because dead lists and tuples are kept for reuse."""
    namespace: dict[str, Callable[[], bytes]] = {}
    exec(compile("def f():\n    return bytes(50000)", "made", "exec"), namespace)
    return namespace["f"]


def test_a_site_outlives_its_function_and_stop_lets_the_code_go() -> None:
    allocations.start(EXACT)
    function = make_function()
    code = weakref.ref(function.__code__)
    kept = function()
    del function
    gc.collect()
    snapshot = allocations.snapshot()
    assert len(kept) == 50_000
    assert any(f.filename == "made" for s in snapshot.sites for f in s.traceback)
    allocations.stop()
    gc.collect()
    assert code() is None


def test_a_snapshot_lets_code_go_that_no_live_block_and_no_peak_needs() -> None:
    allocations.start(EXACT)
    function = make_function()
    code = weakref.ref(function.__code__)
    function()
    del function
    gc.collect()
    assert code() is not None  # the peak has a block of it
    higher_peak = make_blocks(1000, 1000)
    allocations.snapshot()
    assert len(higher_peak) == 1000 and code() is None


def test_many_short_lived_functions_do_not_exhaust_the_tree() -> None:
    allocations.start(EXACT)
    ballast = make_blocks(2000, 1000)
    for round_number in range(8):
        for _ in range(300):
            make_function()()
        allocations.snapshot()
        assert allocations.status().note == "", round_number
    assert len(ballast) == 2000


# Hostile surroundings

STEPS = ("hook on", "hook off", "tracemalloc on", "tracemalloc off")


def take_step(step: str) -> None:
    {
        "hook on": lambda: allocations.start(EXACT),
        "hook off": allocations.stop,
        "tracemalloc on": tracemalloc.start,
        "tracemalloc off": tracemalloc.stop,
    }[step]()


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)), ids="/".join)
def test_every_order_of_starting_and_stopping_beside_tracemalloc(order: tuple[str, ...]) -> None:
    survivors = []
    for _ in range(3):
        for step in order:
            take_step(step)
            survivors.append(make_blocks(20, 600))
            survivors[:-2] = []
            allocations.status()
    tracemalloc.stop()
    allocations.stop()
    allocations.start(EXACT)
    kept = make_blocks(100, 1000)
    assert of_function(allocations.snapshot(), "make_blocks").live_bytes >= 100_000
    assert len(kept) == 100


def test_being_displaced_is_noticed_said_and_can_be_mended() -> None:
    tracemalloc.start()
    allocations.start(EXACT)
    kept = make_blocks(100, 1000)
    tracemalloc.stop()
    snapshot = allocations.snapshot()
    assert snapshot.sites == () and "call start() again" in snapshot.note
    assert allocations.status().displaced and not allocations.status().running
    allocations.start(EXACT)
    more = make_blocks(100, 1000)
    mended = allocations.snapshot()
    assert of_function(mended, "make_blocks").live_bytes >= 100_000 and mended.note == ""
    assert len(kept) == len(more) == 100


def test_the_hook_goes_on_below_a_tracemalloc_that_came_later() -> None:
    allocations.start(EXACT)
    tracemalloc.start()
    kept = make_blocks(100, 1000)
    assert of_function(allocations.snapshot(), "make_blocks").live_bytes >= 100_000
    tracemalloc.stop()
    del kept
    assert of_function(allocations.snapshot(), "make_blocks").live_bytes == 0


def test_memray_and_the_hook_leave_each_other_alone(tmp_path: os.PathLike[str]) -> None:
    pytest.importorskip("memray")
    run_python(
        f"""
        import memray
        from ai_model_optimizations.memory_monitor import allocations
        def blocks(): return [bytes(1000) for _ in range(200)]
        allocations.start(1)
        with memray.Tracker({str(tmp_path)!r} + "/inner", trace_python_allocators=True):
            kept = blocks()
            assert allocations.snapshot().live_bytes > 200_000
        more = blocks()
        assert allocations.snapshot().live_bytes > 400_000 or allocations.status().displaced
        allocations.stop()
        tracker = memray.Tracker({str(tmp_path)!r} + "/outer", trace_python_allocators=True)
        with tracker:
            allocations.start(1)
            kept = blocks()
            assert allocations.snapshot().live_bytes > 200_000
        assert allocations.status().running or allocations.status().displaced
        allocations.stop()
        """,
        quiet=False,  # memray says so when it has to search for a symbol
    )


def test_every_order_of_starting_and_stopping_beside_tracemalloc_and_memray(
    tmp_path: os.PathLike[str],
) -> None:
    """All orders but those that crash without us: tracemalloc before memray at both ends."""
    pytest.importorskip("memray")
    output = run_python(
        f"""
        import itertools, memray, os, tracemalloc
        from ai_model_optimizations.memory_monitor import allocations
        def blocks(): return [bytes(1000) for _ in range(100)]
        def tracker(number):
            path = {str(tmp_path)!r} + f"/{{number}}"
            return memray.Tracker(path, trace_python_allocators=True)
        tools = ("hook", "tracemalloc", "memray")
        def run(number, begin, end):
            with_memray = tracker(number)
            starts = dict(hook=lambda: allocations.start(1), tracemalloc=tracemalloc.start,
                          memray=with_memray.__enter__)
            stops = dict(hook=allocations.stop, tracemalloc=tracemalloc.stop,
                         memray=lambda: with_memray.__exit__(None, None, None))
            survivors = []
            for name in begin:
                starts[name]()
                survivors.append(blocks())
            assert allocations.snapshot().live_bytes > 100_000
            for name in end:
                stops[name]()
                survivors.append(blocks())
                survivors[:-4] = []
                allocations.status()
            allocations.start(1)
            kept = blocks()
            assert allocations.snapshot().live_bytes > 100_000
        for number, (begin, end) in enumerate(
            itertools.product(itertools.permutations(tools), repeat=2)
        ):
            if all(o.index("tracemalloc") < o.index("memray") for o in (begin, end)):
                continue
            child = os.fork()  # a process for each order: what one leaves behind is not the next's
            if child == 0:
                run(number, begin, end)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            assert os.waitstatus_to_exitcode(status) == 0, (begin, end)
        print("calm")
        """,
        quiet=False,  # memray says so when it has to search for a symbol
    )
    assert output == "calm"


def test_threads_allocate_while_others_look_start_and_stop() -> None:
    ending = threading.Event()
    failures: list[BaseException] = []

    def allocate() -> None:
        kept: list[object] = []
        try:
            while not ending.is_set():
                kept.append([{"a": i, "b": str(i)} for i in range(50)])
                if len(kept) > 50:
                    kept.clear()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for cycle in range(30):
        allocations.start(512)
        for _ in range(5):
            assert allocations.snapshot().live_bytes >= 0
        if cycle % 3 == 0:
            allocations.stop()
    ending.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_finalizers_and_gc_callbacks_may_look_and_stop() -> None:
    looked = []

    class Looks:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            looked.append(allocations.snapshot().live_bytes)

    def callback(phase: str, info: dict[str, int]) -> None:
        looked.append(allocations.status().live_bytes)

    allocations.start(EXACT)
    gc.callbacks.append(callback)
    try:
        for _ in range(20):
            Looks()
            gc.collect()
    finally:
        gc.callbacks.remove(callback)
    assert len(looked) >= 60


def test_an_allocation_that_fails_is_no_allocation() -> None:
    allocations.start(EXACT)
    before = allocations.status().live_bytes
    with pytest.raises(MemoryError):
        bytearray(1 << 60)
    assert allocations.status().live_bytes < before + 1_000_000


def test_fork_from_a_busy_process_goes_on_in_both() -> None:
    output = run_python("""
        import os, threading, warnings
        from ai_model_optimizations.memory_monitor import allocations
        warnings.simplefilter("ignore")  # 3.12 warns of fork in a process with threads
        ending = threading.Event()
        def busy():
            while not ending.is_set():
                [{"a": i} for i in range(100)]
        allocations.start(1)
        def blocks(): return [bytes(1000) for _ in range(100)]
        kept = blocks()
        threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
        for t in threads: t.start()
        def seen():
            return sum(s.live_bytes for s in allocations.snapshot().sites
                       if any(f.function == "blocks" for f in s.traceback))
        for _ in range(10):
            child = os.fork()
            if child == 0:
                more = blocks()
                right = 200_000 <= seen() <= 230_000
                del more
                right = right and 100_000 <= seen() <= 115_000
                allocations.stop(); allocations.start(1)
                os._exit(0 if right else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert 100_000 <= seen() <= 115_000
        ending.set()
        for t in threads: t.join()
        print("both")
    """)
    assert output == "both"


@pytest.mark.parametrize("allocator", ["default", "debug", "malloc", "pymalloc_debug"])
def test_the_interpreter_shuts_down_calmly_over_any_allocator(allocator: str) -> None:
    output = run_python(
        """
        import atexit, sys, threading, time
        from ai_model_optimizations.memory_monitor import allocations
        class Late:
            def __del__(self): [bytes(100) for _ in range(100)]
        allocations.start(1)
        late = Late(); late.me = late; sys.late = Late()
        atexit.register(lambda: [bytes(100) for _ in range(100)])
        def spin():
            while True: [str(i) for i in range(100)]
        threading.Thread(target=spin, daemon=True).start()
        kept = [bytes(1000) for _ in range(100)]
        assert allocations.snapshot().live_bytes > 100_000
        print("calm")
        """,
        env={"PYTHONMALLOC": allocator},
    )
    assert output == "calm"


@pytest.mark.parametrize("first", ["hook", "tracemalloc"])
def test_shutdown_with_both_hooks_in_place(first: str) -> None:
    run_python(f"""
        import tracemalloc
        from ai_model_optimizations.memory_monitor import allocations
        starts = [lambda: allocations.start(1), tracemalloc.start]
        for begin in starts if {first!r} == "hook" else reversed(starts): begin()
        kept = [bytes(1000) for _ in range(100)]
    """)


def test_a_subinterpreter_is_refused_clearly_and_its_blocks_are_not_ours() -> None:
    output = run_python("""
        import sys
        if sys.version_info >= (3, 13):
            import _interpreters as interpreters
            create = lambda: interpreters.create("legacy")
            def run(i, source):
                error = interpreters.run_string(i, source)
                assert error is None, error.formatted
        else:
            import _xxsubinterpreters as interpreters
            create = lambda: interpreters.create(isolated=False)
            run = interpreters.run_string
        from ai_model_optimizations.memory_monitor import allocations
        allocations.start(1)
        before = allocations.snapshot().live_bytes
        other = create()
        run(other, "kept = [bytes(1000) for _ in range(1000)]")
        assert allocations.snapshot().live_bytes - before < 500_000
        run(other, '''if True:
            try:
                from ai_model_optimizations.memory_monitor import allocations
            except ImportError as error:
                print("refused", "main interpreter" in str(error))
        ''')
        interpreters.destroy(other)
        kept = [bytes(1000) for _ in range(100)]
        assert allocations.snapshot().live_bytes > 100_000
    """)
    assert output == "refused True"
