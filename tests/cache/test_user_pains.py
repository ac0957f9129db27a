"""The table of docs/cache.md, what users of other caches run into, names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def complaints() -> list[tuple[int, str]]:
    page = (ROOT / "docs" / "cache.md").read_text(encoding="utf-8")
    return [(int(n), rest) for n, rest in re.findall(r"^\| (\d+)\. (.*)\|$", page, re.MULTILINE)]


def existing_tests() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    return {name for text in sources for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}


def test_every_complaint_is_in_the_table() -> None:
    assert [number for number, _ in complaints()] == list(range(1, 18))


@pytest.mark.parametrize(("number", "row"), complaints())
def test_every_complaint_has_tests_or_says_why_not(number: int, row: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", row))
    assert named <= existing_tests(), f"complaint {number}"
    assert named or "no test:" in row, f"complaint {number}"
