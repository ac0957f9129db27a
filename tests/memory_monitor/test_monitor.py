"""One monitor per process, its thread, its figures, its settings."""

import asyncio
import copy
import gc
import importlib
import inspect
import json
import logging
import math
import os
import pickle
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

import ai_model_optimizations.memory_monitor as package
from ai_model_optimizations.memory_monitor import (
    MemoryMonitor,
    allocations,
    get_memory_history,
    get_memory_status,
    memory_monitor,
    setup_memory_monitoring,
    start_monitoring,
    stop_monitoring,
)

STATS_KEYS = {
    "current_memory_mb",
    "current_cpu_percent",
    "active_connections",
    "memory_threshold_mb",
    "monitoring_active",
    "total_snapshots",
    "memory_warnings",
    "leak_alerts",
    "total_gc_runs",
    "gc_stats",
    "top_allocations",
}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.002)


# ---- one instance ----


def test_a_second_construction_returns_the_one_monitor_with_a_warning(
    monitor: MemoryMonitor,
) -> None:
    with pytest.warns(RuntimeWarning, match="already has its memory monitor"):
        second = MemoryMonitor()
    assert second is monitor is memory_monitor


def test_the_first_arguments_that_differ_from_the_defaults_take_effect(
    monitor: MemoryMonitor,
) -> None:
    with pytest.warns(RuntimeWarning):
        MemoryMonitor(check_interval=7, memory_threshold_mb=512)
    assert (monitor.check_interval, monitor.memory_threshold_mb) == (7.0, 512.0)
    with pytest.warns(RuntimeWarning, match="ignored: check_interval"):
        MemoryMonitor(check_interval=3)
    assert monitor.check_interval == 7.0
    with pytest.warns(RuntimeWarning):
        MemoryMonitor()
    assert monitor.memory_threshold_mb == 512.0


def test_the_signature_is_that_of_the_service() -> None:
    parameters = inspect.signature(MemoryMonitor).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {
        "check_interval": 60,
        "memory_threshold_mb": 4096,
        "leak_detection_window": 10,
    }


def test_reloads_copies_and_pickles_are_the_same_monitor(monitor: MemoryMonitor) -> None:
    monitor.configure(check_interval=9)
    reloaded = importlib.reload(package)
    assert reloaded.memory_monitor is monitor
    assert copy.copy(monitor) is monitor
    assert copy.deepcopy([monitor])[0] is monitor
    assert pickle.loads(pickle.dumps(monitor)) is monitor
    assert monitor.check_interval == 9


def test_a_reload_of_the_implementation_gives_the_holder_the_new_code(
    run_python: Callable[..., str],
) -> None:
    run_python("""
import importlib, sys
from ai_model_optimizations.memory_monitor import memory_monitor
import ai_model_optimizations.memory_monitor.monitor as implementation
old = type(memory_monitor)
importlib.reload(implementation)
assert implementation.shared_monitor() is memory_monitor
assert type(memory_monitor) is implementation.MemoryMonitor is not old
memory_monitor.start_monitoring()
for name in [name for name in sys.modules if name.startswith("ai_model_optimizations.memory")]:
    del sys.modules[name]
import ai_model_optimizations.memory_monitor as again
assert again.memory_monitor is memory_monitor
assert again.get_memory_status()["monitoring_active"]
""")


def test_threads_that_race_for_the_monitor_get_one(run_python: Callable[..., str]) -> None:
    run_python("""
import threading
from ai_model_optimizations import _core
_core.interpreter_state().clear()
import ai_model_optimizations.memory_monitor.monitor as implementation
_core.interpreter_state().clear()
found, gate = [], threading.Barrier(8)
def race():
    gate.wait(); found.append(id(implementation.shared_monitor()))
threads = [threading.Thread(target=race) for _ in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
assert len(set(found)) == 1, found
""")


def test_star_import_gives_the_names_that_a_service_used() -> None:
    names: dict[str, Any] = {}
    exec("from ai_model_optimizations.memory_monitor import *", names)
    wanted = {
        "memory_monitor",
        "MemoryMonitor",
        "MemoryTracker",
        "MemoryLeakDetector",
        "track_memory",
        "setup_memory_monitoring",
        "get_memory_status",
        "start_monitoring",
        "stop_monitoring",
    }
    assert wanted <= names.keys()
    assert names["memory_monitor"] is memory_monitor


def test_importing_starts_no_thread_and_imports_neither_torch_nor_psutil(
    run_python: Callable[..., str],
) -> None:
    run_python("""
import sys, threading
import ai_model_optimizations.memory_monitor
assert threading.active_count() == 1
assert not {"torch", "psutil", "prometheus_client"} & sys.modules.keys()
""")


# ---- figures ----


def test_stats_have_the_known_keys_and_are_plain_json_from_the_first_call(
    monitor: MemoryMonitor,
) -> None:
    stats = monitor.get_stats()
    assert set(stats) == STATS_KEYS
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats
    assert stats["current_memory_mb"] > 5
    assert stats["total_snapshots"] == 1
    assert stats["monitoring_active"] is False
    assert stats["gc_stats"][0]["collections"] == gc.get_stats()[0]["collections"]


def test_status_and_history_are_plain_json_from_the_first_call(monitor: MemoryMonitor) -> None:
    history = get_memory_history(5)
    assert [set(entry) for entry in history] == [
        {"timestamp", "memory_mb", "cpu_percent", "active_connections"}
    ]
    status = get_memory_status()
    assert set(status) >= STATS_KEYS
    assert json.loads(json.dumps([status, history], allow_nan=False)) == [status, history]


def test_the_resident_set_is_the_systems(monitor: MemoryMonitor) -> None:
    psutil = pytest.importorskip("psutil")
    info = psutil.Process().memory_info()
    snapshot = monitor.latest
    assert abs(snapshot.process.rss - info.rss) < 8 << 20
    assert snapshot.process.peak >= snapshot.process.rss
    parts = snapshot.process.anonymous + snapshot.process.file_mapped + snapshot.process.shared
    assert abs(parts - snapshot.process.rss) < 1 << 20


def test_a_held_block_shows_and_its_release_shows(monitor: MemoryMonitor) -> None:
    before = monitor._read().process.anonymous
    block = bytearray(b"x" * (64 << 20))
    assert 60 << 20 < monitor._read().process.anonymous - before < 80 << 20
    del block
    assert monitor._read().process.anonymous - before < 8 << 20


def test_the_history_ends_where_it_was_asked_to(monitor: MemoryMonitor) -> None:
    for _ in range(3):
        monitor._tick()
    assert len(monitor.get_memory_history(60)) == 3
    time.sleep(0.02)
    monitor._tick()
    assert 1 <= len(monitor.get_memory_history(0.01 / 60)) < 4
    assert monitor.get_memory_history(math.inf) == monitor.get_memory_history(60)


def test_the_history_is_bounded(monitor: MemoryMonitor) -> None:
    snapshot = monitor._read()
    monitor._history = (snapshot,) * 5000
    monitor._read()
    assert len(monitor.snapshots) == 1440


def test_connections_are_the_connected_sockets_or_what_the_service_says(
    monitor: MemoryMonitor,
) -> None:
    import socket

    before = monitor._read().active_connections
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()), server.accept()[0]:
            assert monitor._read().active_connections == before + 2
        assert monitor._read().active_connections == before
    monitor.count_connections_with(lambda: 42)
    assert monitor._read().active_connections == 42
    monitor.count_connections_with(None)
    assert monitor._read().active_connections == before


def test_a_snapshot_cannot_be_changed(monitor: MemoryMonitor) -> None:
    with pytest.raises(AttributeError):
        monitor.latest.cpu_percent = 5  # type: ignore[misc]


def test_handlers_read_the_published_snapshot_while_the_monitor_runs(
    monitor: MemoryMonitor,
) -> None:
    monitor.configure(check_interval=1000)
    monitor.start_monitoring()
    until(lambda: len(monitor.snapshots) > 0)
    first = monitor.latest
    monitor.get_stats(), monitor.get_memory_status(), monitor.get_memory_history()
    assert monitor.latest is first
    assert monitor.snapshots == [first]


# ---- start and stop ----


def monitor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aimo-memory-monitor"]


def test_start_and_stop_are_idempotent_and_there_is_one_daemon_thread(
    monitor: MemoryMonitor,
) -> None:
    for _ in range(3):
        start_monitoring()
        setup_memory_monitoring()
    assert monitor.monitoring
    assert [thread.daemon for thread in monitor_threads()] == [True]
    for _ in range(3):
        stop_monitoring()
    assert not monitor.monitoring
    assert monitor_threads() == []


@pytest.mark.slow
def test_ten_thousand_starts_and_stops_leave_nothing_behind(monitor: MemoryMonitor) -> None:
    start_monitoring()
    stop_monitoring()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(10_000):
        start_monitoring()
        stop_monitoring()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert monitor.errors == 0


def test_the_thread_takes_readings_at_the_interval(monitor: MemoryMonitor) -> None:
    setup_memory_monitoring(check_interval=0.01)
    until(lambda: len(monitor.snapshots) >= 5)
    setup_memory_monitoring(check_interval=500)
    assert monitor.monitoring and monitor.check_interval == 500


def test_starts_and_stops_from_many_threads_end_in_order(monitor: MemoryMonitor) -> None:
    def work() -> None:
        for _ in range(100):
            start_monitoring()
            stop_monitoring()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop_monitoring()
    assert monitor_threads() == []


def test_a_child_forgets_the_parents_readings_and_monitors_when_used(
    run_python: Callable[..., str],
) -> None:
    run_python("""
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ai_model_optimizations.memory_monitor import *
setup_memory_monitoring(check_interval=0.01)
block = bytearray(b"x" * (100 << 20))
import time
def wait_for(count):
    deadline = time.monotonic() + 20
    while len(memory_monitor.snapshots) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    return len(memory_monitor.snapshots) >= count
assert wait_for(5)
child = os.fork()
if child == 0:
    ok = memory_monitor.monitoring and not memory_monitor.snapshots
    first = memory_monitor.get_stats()
    ok = ok and first["total_snapshots"] >= 1 and wait_for(3)
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
stop_monitoring()
child = os.fork()
if child == 0:
    memory_monitor.get_stats()
    os._exit(1 if memory_monitor.monitoring else 0)
assert os.waitpid(child, 0)[1] == 0
""")


def test_the_interpreter_ends_cleanly_beside_a_running_monitor(
    run_python: Callable[..., str],
) -> None:
    for _ in range(3):
        run_python("""
from ai_model_optimizations.memory_monitor import *
setup_memory_monitoring(check_interval=0.0001, allocations=True)
get_memory_status()
""")


def test_a_tracemalloc_of_the_service_stays_on(monitor: MemoryMonitor) -> None:
    tracemalloc.start()
    try:
        monitor.start_monitoring()
        monitor._tick()
        monitor.stop_monitoring()
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    assert not tracemalloc.is_tracing()


def test_nothing_is_collected_unless_asked(monitor: MemoryMonitor) -> None:
    monitor.configure(memory_threshold_mb=1)
    gc.collect()
    gc.disable()
    try:
        before = [row["collections"] for row in gc.get_stats()]
        for _ in range(5):
            monitor._tick()
        assert [row["collections"] for row in gc.get_stats()] == before
        assert monitor.get_stats()["total_gc_runs"] == 0
        monitor.configure(gc_on_threshold=True, cooldown=1e-9, trim_on_threshold=True)
        monitor._tick()
        assert monitor.get_stats()["total_gc_runs"] == 1
    finally:
        gc.enable()


def test_force_gc_collects_and_says_so(monitor: MemoryMonitor) -> None:
    gc.collect()
    for _ in range(50):
        cycle: list[Any] = []
        cycle.append(cycle)
    del cycle
    result = monitor.force_gc()
    assert result["collected"] >= 50
    assert monitor.get_stats()["total_gc_runs"] == 1
    json.dumps(result, allow_nan=False)


# ---- allocation sites ----


def test_allocation_sites_are_in_the_stats_when_asked_for(monitor: MemoryMonitor) -> None:
    if allocations.status().note:
        pytest.skip(allocations.status().note)
    setup_memory_monitoring(check_interval=1000, allocations=True)
    kept = [str(i) * 100 for i in range(100_000)]
    monitor._tick()
    top = monitor.get_stats()["top_allocations"]
    assert os.path.basename(__file__) in top[0]["site"]
    assert top[0]["live_mb"] > 10
    assert len(kept) == 100_000
    json.dumps(top, allow_nan=False)
    stop_monitoring()
    assert not allocations.status().running


def test_a_hook_that_the_service_started_is_not_stopped(monitor: MemoryMonitor) -> None:
    allocations.start(sample_bytes=1 << 20)
    setup_memory_monitoring(allocations=True)
    stop_monitoring()
    assert allocations.status().running
    assert allocations.status().sample_bytes == 1 << 20


def test_the_kill_switch_leaves_the_monitor_running_without_sites(
    monitor: MemoryMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIMO_DISABLE", "hook")
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        setup_memory_monitoring(allocations=True)
    assert monitor.monitoring
    assert not allocations.status().running
    assert "AIMO_DISABLE" in caplog.text


# ---- errors ----


def test_an_error_is_logged_once_with_its_traceback_counted_and_survived(
    monitor: MemoryMonitor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise SystemExit("a reading that fails")

    monkeypatch.setattr(monitor._sampler, "take", broken)
    with caplog.at_level(logging.ERROR, "ai_model_optimizations"):
        setup_memory_monitoring(check_interval=0.001)
        until(lambda: monitor.errors >= 5)
    assert monitor.monitoring
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 1
    assert records[0].exc_info is not None and records[0].exc_info[2] is not None
    monkeypatch.undo()
    until(lambda: len(monitor.snapshots) >= 2)


@pytest.mark.parametrize("answer", [SystemExit("no"), LookupError("no"), "many", float("nan")])
def test_a_connection_source_that_fails_hides_no_memory(
    monitor: MemoryMonitor, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    def broken() -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monitor.count_connections_with(broken)
    with caplog.at_level(logging.ERROR, "ai_model_optimizations"):
        assert monitor.get_memory_status()["current_memory_mb"] > 0
        setup_memory_monitoring(check_interval=0.001)
        until(lambda: len(monitor.snapshots) >= 5)
    assert monitor.errors >= 5 and len(caplog.records) == 1
    assert monitor.get_stats()["active_connections"] >= 0
    monitor.count_connections_with(None)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"check_interval": 0}, ValueError, "check_interval"),
        ({"check_interval": -1}, ValueError, "check_interval"),
        ({"check_interval": math.nan}, ValueError, "check_interval"),
        ({"check_interval": math.inf}, ValueError, "check_interval"),
        ({"check_interval": 1e30}, ValueError, "check_interval must be .* at most [0-9]+ seconds"),
        ({"check_interval": "60"}, TypeError, "check_interval"),
        ({"check_interval": True}, TypeError, "check_interval"),
        ({"memory_threshold_mb": 0}, ValueError, "memory_threshold_mb"),
        ({"memory_threshold_mb": math.nan}, ValueError, "memory_threshold_mb"),
        ({"memory_threshold_mb": 10**400}, ValueError, "memory_threshold_mb"),
        ({"memory_threshold_mb": "4G"}, TypeError, "memory_threshold_mb"),
        ({"leak_detection_window": 5}, ValueError, "leak_detection_window"),
        ({"leak_detection_window": 10.0}, TypeError, "leak_detection_window"),
        ({"leak_detection_window": 10**9}, ValueError, "leak_detection_window"),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_changes_nothing(
    monitor: MemoryMonitor, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    before = monitor._settings
    with pytest.raises(error, match=text):
        MemoryMonitor(**arguments)
    with pytest.raises(error, match=text):
        setup_memory_monitoring(**arguments)
    assert monitor._settings == before
    assert not monitor.monitoring


def test_a_bad_setting_of_the_alarm_is_refused_by_name(monitor: MemoryMonitor) -> None:
    before = monitor._settings
    with pytest.raises(TypeError, match="gc_on_threshold must be a bool, got str"):
        monitor.configure(gc_on_threshold="yes", cooldown=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="trim_on_threshold must be a bool, got int"):
        monitor.configure(trim_on_threshold=1)
    with pytest.raises(ValueError, match="warmup_readings must be 0 to"):
        monitor.configure(warmup_readings=-1)
    assert monitor._settings == before


@pytest.mark.parametrize("minutes", [0, -1, math.nan])
def test_a_history_of_no_length_is_refused(monitor: MemoryMonitor, minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes"):
        monitor.get_memory_history(minutes)


def test_wrong_callbacks_sources_and_names_are_refused(monitor: MemoryMonitor) -> None:
    with pytest.raises(TypeError, match="minutes"):
        monitor.get_memory_history("5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callback"):
        monitor.on_threshold(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="source"):
        monitor.count_connections_with(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weak reference"):
        monitor.track_object(5)
    with pytest.raises(TypeError, match="name"):
        monitor.track_object(monitor, name=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["much", "-5", "nan", "0"])
def test_a_wrong_threshold_variable_is_refused_at_the_start_and_logged_before(
    monitor: MemoryMonitor, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", text)
    assert monitor.get_stats()["memory_threshold_mb"] > 0
    assert monitor.errors == 1
    with pytest.raises(ValueError, match="MEMORY_THRESHOLD_MB"):
        setup_memory_monitoring()
    assert not monitor.monitoring


# ---- tracked objects ----


def test_tracked_objects_are_counted_until_they_die(monitor: MemoryMonitor) -> None:
    class Session:
        pass

    sessions = [Session() for _ in range(3)]
    for session in sessions:
        monitor.track_object(session)
    monitor.track_object(sessions[0], name="first")
    assert monitor.tracked_objects() == {"first": 1, "Session": 2}
    assert monitor.untrack_object(sessions[1])
    assert not monitor.untrack_object(sessions[1])
    del session, sessions
    gc.collect()
    assert monitor.tracked_objects() == {}


# ---- alarms ----


def test_a_process_above_its_threshold_alarms_once_per_cooldown(
    monitor: MemoryMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []
    monitor.on_threshold(events.append)
    monitor.configure(memory_threshold_mb=1, cooldown=1000)
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        for _ in range(5):
            monitor._tick()
    assert monitor.get_stats()["memory_warnings"] == 1
    assert [event.level for event in events] == ["critical"]
    assert events[0].threshold_mb == 1 and events[0].memory_mb > 1
    assert caplog.text.count("memory is critical") == 1
    assert monitor.remove_callback(events.append) and not monitor.remove_callback(events.append)


def test_a_callback_runs_on_the_loop_that_registered_it(monitor: MemoryMonitor) -> None:
    async def service() -> tuple[str, str]:
        drained: asyncio.Queue[str] = asyncio.Queue()
        here = threading.current_thread().name

        async def drain(_event: object) -> None:
            await drained.put(threading.current_thread().name)

        monitor.on_threshold(drain)
        setup_memory_monitoring(memory_threshold_mb=1, check_interval=1000)
        return here, await asyncio.wait_for(drained.get(), 30)

    here, there = asyncio.run(service())
    assert here == there
    monitor.configure(cooldown=1e-9)
    monitor._tick()  # its loop is closed by now: nothing happens
    assert monitor.errors == 0


def test_a_callback_without_a_loop_runs_on_the_monitors_thread(monitor: MemoryMonitor) -> None:
    names: list[str] = []
    monitor.on_threshold(lambda _event: names.append(threading.current_thread().name))
    setup_memory_monitoring(memory_threshold_mb=1, check_interval=1000)
    until(lambda: len(names) == 1)
    assert names == ["aimo-memory-monitor"]


def test_a_coroutine_function_needs_a_loop(monitor: MemoryMonitor) -> None:
    async def drain(_event: object) -> None: ...

    with pytest.raises(TypeError, match="event loop"):
        monitor.on_threshold(drain)


def test_a_callback_that_fails_or_stops_the_monitor_hurts_nobody(monitor: MemoryMonitor) -> None:
    after: list[object] = []

    def fails(_event: object) -> None:
        raise KeyboardInterrupt

    def stops(event: object) -> None:
        monitor.stop_monitoring()
        after.append(event)

    monitor.on_threshold(fails)
    monitor.on_threshold(stops)
    setup_memory_monitoring(memory_threshold_mb=1, check_interval=0.001)
    until(lambda: len(after) == 1)
    until(lambda: monitor_threads() == [])
    assert monitor.errors == 1


def test_steady_growth_is_alarmed_with_the_site_that_grows(
    monitor: MemoryMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    if allocations.status().note:
        pytest.skip(allocations.status().note)
    alarms: list[Any] = []
    monitor.on_leak(alarms.append)
    monitor.configure(leak_detection_window=8, warmup_readings=2, check_interval=1000)
    allocations.start(sample_bytes=64 << 10)
    kept: list[list[str]] = []
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        while len(kept) < 20:
            kept.append([str(j) * 20 for j in range(20_000)])
            time.sleep(0.005)
            monitor._tick()
            if alarms:
                break
    assert len(kept) >= 10  # not before warm-up and a whole window
    assert monitor.get_stats()["leak_alerts"] == 1
    assert os.path.basename(__file__) in str(alarms[0].sites[0])
    assert "memory grows" in caplog.text
    assert monitor.get_memory_status()["leak"]["slope_mb_per_minute"] > 1
    json.dumps(monitor.get_memory_status(), allow_nan=False)


def test_a_model_load_is_no_leak(monitor: MemoryMonitor) -> None:
    monitor.configure(leak_detection_window=8, warmup_readings=0)
    kept = []
    for i in range(24):
        if i == 4:
            kept.append(bytearray(b"x" * (50 << 20)))
        time.sleep(0.003)
        monitor._tick()
        assert monitor.leak is None
    assert len(kept) == 1 and monitor.get_stats()["leak_alerts"] == 0


def test_the_monitor_is_the_same_in_every_module_that_holds_it() -> None:
    assert sys.modules["ai_model_optimizations.memory_monitor"].memory_monitor is memory_monitor
