"""Container limits from the files of cgroup v2, v1 and both, in containers of every shape."""

from pathlib import Path

import pytest

from ai_model_optimizations.memory_monitor import limits

MIB = 1 << 20
V1_UNLIMITED = 9223372036854771712


class FakeSystem:
    """A root with the few files of /proc and of the control groups that are read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounts: list[str] = []
        self.groups: list[str] = []
        self.write("/proc/meminfo", "MemTotal:       65536000 kB\nMemFree: 1 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def mount_v2(self, inside: str = "/", point: str = "/sys/fs/cgroup") -> None:
        self.mounts.append(f"31 23 0:28 {inside} {point} rw,nosuid - cgroup2 cgroup2 rw")

    def mount_v1(self, inside: str = "/", point: str = "/sys/fs/cgroup/memory") -> None:
        self.mounts.append(f"35 31 0:32 {inside} {point} rw - cgroup cgroup rw,memory")

    def limit_v2(self, folder: str, limit: str, current: int, **stat: int) -> None:
        self.write(f"{folder}/memory.max", limit + "\n")
        self.write(f"{folder}/memory.current", f"{current}\n")
        rows = "".join(f"{name} {value}\n" for name, value in stat.items())
        self.write(f"{folder}/memory.stat", rows)

    def limit_v1(self, folder: str, limit: int, usage: int, **stat: int) -> None:
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
        rows = "".join(f"{name} {value}\n" for name, value in stat.items())
        self.write(f"{folder}/memory.stat", rows)

    def read(self) -> limits.ContainerMemory | None:
        self.write("/proc/self/mountinfo", "\n".join(self.mounts) + "\n")
        self.write("/proc/self/cgroup", "\n".join(self.groups) + "\n")
        return limits.container_memory(str(self.root))


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path)


def test_v2_in_a_container_with_its_own_namespace(system: FakeSystem) -> None:
    system.mount_v2()
    system.groups = ["0::/"]
    system.limit_v2("/sys/fs/cgroup", str(512 * MIB), 300 * MIB, inactive_file=100 * MIB)
    memory = system.read()
    assert memory is not None
    assert (memory.version, memory.limit, memory.usage) == (2, 512 * MIB, 300 * MIB)
    assert memory.working_set == 200 * MIB
    assert memory.available == 312 * MIB


def test_v2_takes_the_group_with_the_least_room_on_the_way_up(system: FakeSystem) -> None:
    system.mount_v2()
    system.groups = ["0::/pod/app/worker"]
    system.limit_v2("/sys/fs/cgroup/pod/app/worker", "max", 100 * MIB)
    system.limit_v2("/sys/fs/cgroup/pod/app", str(800 * MIB), 100 * MIB)
    system.limit_v2("/sys/fs/cgroup/pod", str(1000 * MIB), 900 * MIB)
    memory = system.read()
    assert memory is not None and memory.limit == 1000 * MIB


def test_v2_high_counts_as_a_limit(system: FakeSystem) -> None:
    system.mount_v2()
    system.groups = ["0::/"]
    system.limit_v2("/sys/fs/cgroup", str(512 * MIB), MIB)
    system.write("/sys/fs/cgroup/memory.high", str(256 * MIB))
    memory = system.read()
    assert memory is not None and memory.limit == 256 * MIB


def test_v2_seen_through_a_mount_of_its_own_part(system: FakeSystem) -> None:
    system.mount_v2(inside="/docker/abc")
    system.groups = ["0::/docker/abc/inner"]
    system.limit_v2("/sys/fs/cgroup/inner", str(64 * MIB), MIB)
    memory = system.read()
    assert memory is not None and memory.limit == 64 * MIB


def test_a_path_outside_of_the_namespace_falls_back_to_the_top(system: FakeSystem) -> None:
    system.mount_v2()
    system.groups = ["0::/../../other"]
    system.limit_v2("/sys/fs/cgroup", str(64 * MIB), MIB)
    memory = system.read()
    assert memory is not None and memory.limit == 64 * MIB


def test_v1_without_a_limit_is_no_limit(system: FakeSystem) -> None:
    system.mount_v1()
    system.groups = ["4:memory:/"]
    system.limit_v1("/sys/fs/cgroup/memory", V1_UNLIMITED, MIB)
    assert system.read() is None


def test_v1_beside_an_unlimited_v2(system: FakeSystem) -> None:
    system.mount_v1()
    system.mount_v2(point="/sys/fs/cgroup/unified")
    system.groups = ["4:cpu,memory:/box", "0::/"]
    system.limit_v1("/sys/fs/cgroup/memory/box", 128 * MIB, 100 * MIB, total_inactive_file=MIB)
    memory = system.read()
    assert memory is not None
    assert (memory.version, memory.limit, memory.working_set) == (1, 128 * MIB, 99 * MIB)


def test_a_mount_point_with_a_blank_is_found(system: FakeSystem) -> None:
    system.mount_v2(point=r"/my\040groups")
    system.groups = ["0::/"]
    system.limit_v2("/my groups", str(64 * MIB), MIB)
    assert system.read() is not None


@pytest.mark.parametrize(
    ("mounts", "groups"),
    [
        ([], []),
        (["nonsense"], ["nonsense", "0::", "::", ""]),
        (["31 23 0:28 / /sys/fs/cgroup rw - cgroup2"], ["0::/"]),
        (["1 2 3 - "], ["4:memory:/"]),
    ],
)
def test_files_that_say_nothing_useful_mean_no_limit(
    system: FakeSystem, mounts: list[str], groups: list[str]
) -> None:
    system.mounts, system.groups = mounts, groups
    assert system.read() is None


def test_a_system_without_any_of_the_files_has_no_limit(tmp_path: Path) -> None:
    assert limits.container_memory(str(tmp_path)) is None
    assert limits.machine_memory(str(tmp_path)) is None
    assert limits.default_threshold_mb(None, str(tmp_path)) == 4096


def test_a_limit_that_is_not_a_number_is_no_limit(system: FakeSystem) -> None:
    system.mount_v2()
    system.groups = ["0::/"]
    system.limit_v2("/sys/fs/cgroup", "lots", MIB)
    assert system.read() is None


@pytest.mark.parametrize(
    ("limit_mb", "threshold"), [(1000, 850.0), (4096, 3481.6), (6000, 4096.0), (100_000, 4096.0)]
)
def test_the_threshold_is_4_gib_or_85_percent_of_the_limit(limit_mb: int, threshold: float) -> None:
    container = limits.ContainerMemory(2, "/", limit_mb * MIB, 0, 0)
    assert limits.default_threshold_mb(container) == pytest.approx(threshold)


def test_without_a_container_the_machine_is_the_limit(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path)
    system.write("/proc/meminfo", "MemTotal: 1048576 kB\n")
    limits.machine_memory.cache_clear()
    assert limits.default_threshold_mb(None, str(tmp_path)) == pytest.approx(870.4)


def test_the_variable_sets_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", " 700.5 ")
    assert limits.threshold_from_environment() == 700.5
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", "")
    assert limits.threshold_from_environment() is None
    monkeypatch.delenv("MEMORY_THRESHOLD_MB")
    assert limits.threshold_from_environment() is None


@pytest.mark.parametrize("text", ["2GB", "inf", "nan", "-1", "0", "1e400"])
def test_a_variable_that_is_no_size_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MEMORY_THRESHOLD_MB", text)
    with pytest.raises(ValueError, match="MEMORY_THRESHOLD_MB"):
        limits.threshold_from_environment()
