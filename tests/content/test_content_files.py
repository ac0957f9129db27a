"""Content files: what is read of them, and what is said about those that are wrong."""

import json
from pathlib import Path

import pytest

from ai_model_optimizations.content.keywords import KeywordTable
from ai_model_optimizations.content.static_content import read_content
from ai_model_optimizations.errors import ContentFileError


def written(folder: Path, document: object) -> Path:
    path = folder / "static_responses.json"
    text = document if isinstance(document, str) else json.dumps(document, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


def test_both_forms_of_a_response_are_read_in_the_files_order(tmp_path: Path) -> None:
    content = read_content(
        written(
            tmp_path,
            {
                "responses": {
                    "hours": {"message": "9 to 5.", "keywords": ["open"], "category": "shop"},
                    "thanks": "You are welcome.",
                    "default": "Nothing on {user_input}.",
                },
                "categories": {"shop": "The shop"},
                "settings": {"similarity_threshold": 0.6, "anything": [1]},
            },
        )
    )
    assert [entry.name for entry in content.entries] == ["hours", "thanks"]
    assert content.entries[0].group == "shop" and content.entries[0].keywords == ("open",)
    assert content.threshold == 0.6 and content.categories == {"shop": "The shop"}
    assert content.default_answer(" {x} ") == "Nothing on {x}."
    assert len(content.default_answer("x" * 10**6)) < 1100


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("{", 1, "not JSON"),
        ("[]", 1, "expected an object with responses, got a list"),
        ('{\n"responses": 3}', 2, "responses: expected an object, got a number"),
        ('{"responses": {\n\n"a": 1}}', 3, "responses.a: expected an object or a string"),
        ('{"responses": {\n"a": {"keywords": []}}}', 2, "responses.a.message: expected a string"),
        ('{"responses": {\n"a": {"message": "m", "keywords": "k"}}}', 2, "keywords: expected a l"),
        ('{"responses": {"a": {"message": "m",\n"keywords": ["k", 2]}}}', 1, "keywords[1]"),
        ('{"responses": {"a": "1",\n"a": "2"}}', 2, "'a' occurs twice"),
        ('{"settings":\n{\n"similarity_threshold": 3}}', 3, "a cosine in [-1, 1], got 3"),
        ('{"settings": {"default_response": 1}}', 1, "expected str, got a number"),
        ('{"responses": {\n"ı": 1}}', 2, "responses.ı"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_refused_with_file_line_and_key(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ContentFileError) as caught:
        read_content(path)
    message = str(caught.value)
    assert str(path) in message and words in message
    assert f"line {line}" in message or "nested" in words


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "static_responses.json"
    path.write_bytes(b'{"responses":\n{"a": "\xff"}}')
    with pytest.raises(ContentFileError, match="line 2: not UTF-8"):
        read_content(path)


def test_a_missing_file_and_a_folder_in_its_place_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no content file"):
        read_content(tmp_path / "static_responses.json")
    (tmp_path / "static_responses.json").mkdir()
    with pytest.raises(OSError):
        read_content(tmp_path / "static_responses.json")


TABLE = KeywordTable(
    {
        "card": ["card", "kart"],
        "account": ["account", "hesap", "bank account number"],
        "iban": ["IBAN"],
        "invoice": ["ışık faturası"],
    }
)


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("Where is my CARD?", "card"),
        ("two cards", "card"),
        ("Kartımı kaybettim", "card"),
        ("KARTLARIM NEREDE", "card"),
        ("Hesabımı kapatmak istiyorum", "account"),
        ("what is the iban", "iban"),
        ("İBAN numaram", "iban"),
        ("ıban", "iban"),
        ("IŞIK FATURASI", "invoice"),
        ("isik faturasi", "invoice"),
        ("my card, or the bank account number", "account"),
        ("cardiology", None),
        ("kartopu", None),
        ("", None),
        ("!!! ???", None),
    ],
)
def test_keywords_are_found_in_any_case_with_either_i_and_with_endings(
    message: str, category: str | None
) -> None:
    assert TABLE.match(message) == category
