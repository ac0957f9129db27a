import errno
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import Clock, TableEmbedder, at_angle

from ai_model_optimizations import CacheFileError, ClosedError, SpaceMismatchError
from ai_model_optimizations.cache import SmartCache

WRITER = Path(__file__).with_name("journal_writer.py")


def filled(entries=1500, **options):
    cache = SmartCache(ttl=1000, threshold=0.999, **options)
    rows = np.random.default_rng(0).standard_normal((entries, 8)).astype(np.float32)
    for i, row in enumerate(rows):
        value = [f"värde {i}", f"bytes {i}".encode(), {"i": [i, None]}][i % 3]
        cache.put(
            row,
            value,
            query=None if i % 4 == 0 else f"question {i} \u0130",
            context=["", ("tenant", i % 5, None), "plain"][i % 3],
            tags=[f"t{i % 2}"] if i % 5 == 0 else (),
            source="s" if i % 6 == 0 else None,
            ttl=None if i % 7 == 0 else 500 + i,
            cost=i,
        )
    return cache, rows


def contents(cache):
    return sorted(
        repr((e.value, e.query, e.context, e.source, e.tags, e.hits, e.cost)) for e in cache
    )


def time_left(cache):
    return sorted(e.expires_in for e in cache if e.expires_in is not None)


@pytest.mark.parametrize("row_dtype", ["f16", "int8"])
def test_what_is_saved_is_what_is_loaded(tmp_path, row_dtype):
    cache, rows = filled(row_dtype=row_dtype)
    for i in range(0, 1500, 3):
        cache.get_semantic_similar(rows[i], threshold=0.99)
    cache.save(tmp_path / "cache.aimo")
    loaded = SmartCache.load(tmp_path / "cache.aimo")
    assert contents(loaded) == contents(cache)
    assert time_left(loaded) == pytest.approx(time_left(cache), abs=60)
    assert loaded.threshold == 0.999 and loaded.load_report.entries == 1500
    for i in range(0, 1500, 10):
        context = ["", ("tenant", i % 5, None), "plain"][i % 3]
        a = cache.get_semantic_similar(rows[i], threshold=0.9, context=context)
        b = loaded.get_semantic_similar(rows[i], threshold=0.9, context=context)
        assert a.value == b.value and a.similarity == pytest.approx(b.similarity, abs=1e-6)
    assert loaded.invalidate(prefix=("tenant",)) == 500


def test_a_cache_is_not_pickled_but_saved():
    with pytest.raises(TypeError, match="a SmartCache is neither pickled nor copied: save it"):
        pickle.dumps(SmartCache())


def test_the_file_is_for_its_owner_alone_and_no_other_is_left(tmp_path):
    cache, _ = filled(10)
    os.umask(old := os.umask(0))
    assert old >= 0
    cache.save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a"]
    with SmartCache.open(tmp_path / "b", ttl=None) as opened:
        opened.put([1.0, 0.0], "v")
        for name in os.listdir(tmp_path):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_options_override_what_was_saved(tmp_path):
    cache, _ = filled(100)
    cache.save(tmp_path / "a")
    small = SmartCache.load(tmp_path / "a", capacity=30, threshold=0.5, policy="lru")
    assert len(small) == 30 and small.threshold == 0.5


def test_time_goes_on_while_the_cache_is_in_a_file(tmp_path, monkeypatch):
    clock = Clock()
    cache = SmartCache(ttl=100, clock=clock)
    cache.put(at_angle(1.0), "v", query="q")
    cache.put(at_angle(1.0), "ever", query="ever", ttl=None)
    cache.save(tmp_path / "a")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    later = Clock()
    later.now = 5.0
    loaded = SmartCache.load(tmp_path / "a", clock=later)
    assert loaded.get("q").age == pytest.approx(60, abs=1)
    later.now += 41
    assert loaded.get("q") is None and loaded.get("ever").value == "ever"


def test_another_model_raises(tmp_path):
    cache = SmartCache(embedder=TableEmbedder({"q": at_angle(1.0)}))
    cache.put("q", "v")
    cache.save(tmp_path / "a")
    assert SmartCache.load(tmp_path / "a").space_id == "table-1"
    with pytest.raises(SpaceMismatchError, match="table-1"):
        SmartCache.load(tmp_path / "a", space_id="other")


def test_a_file_that_is_none_of_ours_raises(tmp_path):
    (tmp_path / "a").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("a", "empty"):
        with pytest.raises(CacheFileError, match=name):
            SmartCache.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        SmartCache.load(tmp_path / "missing")


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_reported_and_gives_back_what_is_whole(tmp_path, seed):
    cache, _ = filled(2000)
    cache.save(tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    rng = random.Random(seed)
    if seed % 3 == 0:
        del data[rng.randrange(len(data) // 2, len(data)) :]
    elif seed % 3 == 1:
        data[rng.randrange(100, len(data))] ^= 1 << rng.randrange(8)
    else:
        start = rng.randrange(100, len(data) - 5000)
        data[start : start + 5000] = rng.randbytes(5000)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CacheFileError, match=r"entries can be read.*damaged='keep'"):
        SmartCache.load(tmp_path / "a")
    kept = SmartCache.load(tmp_path / "a", damaged="keep")
    assert kept.load_report.damage
    assert set(contents(kept)) <= set(contents(cache))
    assert len(kept) >= 2000 - 512 * 2 or seed % 3 == 0


def test_an_opened_cache_finds_everything_again(tmp_path):
    path = tmp_path / "store"
    with SmartCache.open(path, ttl=None, fsync_every=10) as cache:
        for i in range(100):
            cache.put(at_angle(1.0), i, query=f"q{i}", context=f"c{i % 3}")
        cache.put(at_angle(1.0), "new", query="q5", context="c2")
        assert cache.invalidate(context="c1", erase=False) == 33
        before = contents(cache)
    with SmartCache.open(path) as again:
        assert contents(again) == before
        again.clear()
        again.put(at_angle(1.0), "after")
    with SmartCache.open(path) as last:
        assert [entry.value for entry in last] == ["after"]


def test_what_is_invalidated_is_not_in_the_files_any_more(tmp_path):
    path = tmp_path / "store"
    with SmartCache.open(path, ttl=None) as cache:
        cache.put(at_angle(1.0), "SECRET-ANSWER", query="SECRET-QUESTION", context="SECRET-USER")
        cache.put(at_angle(1.0), "kept", query="kept")
        cache.checkpoint()
        cache.put(
            at_angle(1.0), "SECRET-ANSWER-2", query="SECRET-QUESTION-2", context="SECRET-USER"
        )
        assert b"SECRET" in b"".join(p.read_bytes() for p in tmp_path.iterdir())
        cache.invalidate(context="SECRET-USER")
        assert b"SECRET" not in b"".join(p.read_bytes() for p in tmp_path.iterdir())
    with SmartCache.open(path) as again:
        assert [entry.value for entry in again] == ["kept"]


def test_a_closed_cache_takes_nothing_more_and_an_opened_one_has_one_owner(tmp_path):
    cache = SmartCache.open(tmp_path / "store")
    with pytest.raises(BlockingIOError, match="open in another"):
        SmartCache.open(tmp_path / "store")
    cache.close()
    cache.close()
    with pytest.raises(ClosedError):
        cache.put([1.0, 0.0], "v")
    SmartCache.open(tmp_path / "store").close()
    with pytest.raises(ValueError, match="has no file"):
        SmartCache().checkpoint()


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.put([1.0, 0.0], "late"),
        lambda cache: cache.put_many([[1.0, 0.0]], ["late"]),
        lambda cache: cache.get_or_compute("late", str.upper, embedding=[1.0, 0.0]),
        lambda cache: cache.invalidate(tag="t"),
        lambda cache: cache.clear(),
        lambda cache: cache.checkpoint(),
    ],
    ids=["put", "put_many", "get_or_compute", "invalidate", "clear", "checkpoint"],
)
def test_a_closed_cache_refuses_a_change_and_leaves_the_next_owners_files_alone(tmp_path, change):
    cache = SmartCache.open(tmp_path / "store", ttl=None)
    cache.put([0.0, 1.0], "v", query="q", tags=["t"])
    cache.close()
    with SmartCache.open(tmp_path / "store") as owner:
        owner.put([1.0, 1.0], "the owner's", query="o")
        with pytest.raises(ClosedError):
            change(cache)
        assert [entry.value for entry in cache] == ["v"]
    with SmartCache.open(tmp_path / "store") as again:
        assert sorted(entry.value for entry in again) == ["the owner's", "v"]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.put([1.0, 0.0], "child", query="child"),
        lambda cache: cache.invalidate(context=""),
        lambda cache: cache.clear(),
        lambda cache: cache.checkpoint(),
    ],
    ids=["put", "invalidate", "clear", "checkpoint"],
)
def test_a_forked_child_leaves_the_files_alone(tmp_path, change):
    with SmartCache.open(tmp_path / "store", ttl=None) as cache:
        cache.put([1.0, 0.0], "parent", query="parent")
        child = os.fork()
        if child == 0:
            change(cache)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        cache.put([1.0, 0.0], "after", query="after")
    with SmartCache.open(tmp_path / "store") as again:
        assert [entry.value for entry in again] == ["parent", "after"]


def test_a_record_that_the_disk_had_no_room_for_leaves_no_half_behind(tmp_path, monkeypatch):
    write = os.write
    with SmartCache.open(tmp_path / "store", ttl=None) as cache:
        cache.put([1.0, 0.0], "first", query="first")

        def write_half(descriptor, data):
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(OSError, match="No space"):
            cache.put([1.0, 0.0], "second", query="second")
        monkeypatch.setattr(os, "write", write)
        cache.put([1.0, 0.0], "third", query="third")
    with SmartCache.open(tmp_path / "store") as again:
        assert [entry.value for entry in again] == ["first", "third"]


def test_a_space_that_becomes_known_later_is_kept(tmp_path):
    class Spaced(list):
        space_id = "late"

    with SmartCache.open(tmp_path / "store") as cache:
        cache.put(Spaced([1.0, 0.0]), "v")
    with SmartCache.open(tmp_path / "store") as again:
        assert again.space_id == "late"


def run_and_kill(path, mode, after):
    """Let a writer run, kill it without warning, and return what it had said."""
    child = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), mode], stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(30, child.kill)
    timer.start()
    said = []
    for line in child.stdout:
        said.append(line.split())
        if len(said) >= after:
            child.send_signal(signal.SIGKILL)
    child.wait()
    timer.cancel()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL and len(said) >= after
    return said


@pytest.mark.parametrize("mode", ["put", "checkpoint", "invalidate"])
@pytest.mark.parametrize("after", [1, 23, 160])
def test_a_killed_process_loses_nothing_that_had_returned(tmp_path, mode, after):
    path = tmp_path / "store"
    said = run_and_kill(path, mode, after)
    with SmartCache.open(path) as cache:
        found = {entry.query for entry in cache}
        # A clearing that was killed in the middle may have removed what came before it.
        last_cleared = max((int(i) for what, i in said if what == "cleared"), default=-1)
        puts = [int(i) for what, i in said if what == "put"]
        assert not {f"q{i}" for i in range(last_cleared + 1)} & found
        if not (mode == "invalidate" and max(puts) % 7 == 3):
            assert {f"q{i}" for i in puts if i > last_cleared} <= found
        assert not [name for name in os.listdir(tmp_path) if ".tmp-" in name]
        assert not cache.load_report.damage


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_record_cut_off_at_the_end_costs_only_itself(tmp_path, cut):
    path = tmp_path / "store"
    with SmartCache.open(path, ttl=None) as cache:
        for i in range(5):
            cache.put([1.0, 0.0], i, query=str(i))
    journal = next(tmp_path.glob("store.journal-*"))
    journal.write_bytes(journal.read_bytes()[:-cut])
    with SmartCache.open(path) as again:
        assert sorted(entry.value for entry in again) == [0, 1, 2, 3]
        assert again.load_report.torn_tail


def test_damage_inside_a_journal_is_reported(tmp_path):
    path = tmp_path / "store"
    with SmartCache.open(path, ttl=None) as cache:
        for i in range(5):
            cache.put([1.0, 0.0], f"value {i}", query=str(i))
    journal = next(tmp_path.glob("store.journal-*"))
    journal.write_bytes(journal.read_bytes().replace(b"value 2", b"value X"))
    with pytest.raises(CacheFileError, match="4 entries can be read"):
        SmartCache.open(path)
    with SmartCache.open(path, damaged="keep") as again:
        assert sorted(e.value for e in again) == [f"value {i}" for i in (0, 1, 3, 4)]
    SmartCache.open(path).close()


def test_the_journal_is_taken_into_the_snapshot_before_it_grows_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ai_model_optimizations.cache.storage._MIN_JOURNAL", 20_000)
    path = tmp_path / "store"
    with SmartCache.open(path, capacity=20, ttl=None) as cache:
        for i in range(500):
            cache.put([1.0, 0.0], "x" * 200, query=str(i))
            size = sum(p.stat().st_size for p in tmp_path.iterdir())
            assert size < 80_000


def test_entries_come_and_go_while_a_snapshot_is_written(tmp_path):
    path = tmp_path / "store"
    stop = threading.Event()
    with SmartCache.open(path, ttl=None, capacity=2000, fsync_every=1000) as cache:

        def write():
            i = 0
            while not stop.is_set():
                cache.put([1.0, i % 97], i, query=f"q{i % 3000}")
                i += 1

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(10):
            cache.checkpoint()
        stop.set()
        writer.join()
        before = {(e.query, e.value) for e in cache}
    with SmartCache.open(path, capacity=10_000) as again:
        assert before <= {(e.query, e.value) for e in again}
