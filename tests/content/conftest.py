"""Content, managers in the older style, and an embedder that knows which words mean the same."""

import json
import sys
from pathlib import Path

import pytest

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
