"""Content, managers in the older style, and an embedder that knows which words mean the same."""

import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_model_optimizations import optimized_content_manager

sys.path.insert(0, str(Path(__file__).parent))

DOCUMENT = {
    "responses": {
        "password": {
            "message": "Reset it under Settings, Security.",
            "keywords": ["password", "şifre"],
            "category": "account",
        },
        "shipping": {
            "message": "Parcels arrive within two days.",
            "keywords": ["parcel", "kargo"],
            "category": "orders",
        },
        "hello": "Hello there!",
    },
    "categories": {"account": "Accounts", "orders": "Orders"},
    "settings": {"default_response": "No idea about {user_input}", "similarity_threshold": 0.8},
}


@pytest.fixture
def content_dir(tmp_path: Path) -> Path:
    """A folder with a small content file."""
    folder = tmp_path / "content"
    folder.mkdir()
    (folder / "static_responses.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_thread_is_left() -> Iterator[None]:
    """Lets what a module's tests dropped go before other folders count threads."""
    yield
    optimized_content_manager._managers.clear()
    deadline = time.monotonic() + 3
    while threads() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)


def threads() -> list[str]:
    """The names of batch processors' threads."""
    return [t.name for t in threading.enumerate() if t.name.startswith("aimo-batch")]
