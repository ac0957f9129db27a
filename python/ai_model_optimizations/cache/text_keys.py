"""When two questions are the same text."""

from __future__ import annotations

import unicodedata


def normalize_text(text: str) -> str:
    """Return the form under which a question is found again without its vector.

    Unicode is composed and white space collapsed. Case is kept: "US" is not "us", and which letter
    "I" is the capital of depends on the language. Questions that differ only in case can still
    match by their vectors, where the guards compare them.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())
