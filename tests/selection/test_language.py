from __future__ import annotations

import pytest

from ai_model_optimizations.selection import detect_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I reset my password?", "en"),
        ("the card was not accepted", "en"),
        ("Siparişim nerede?", "tr"),
        ("sifremi nasıl değiştirebilirim", "tr"),
        ("İADE İÇİN NE YAPMAM GEREKİR", "tr"),
        ("bir sorum var ama cevap yok", "tr"),
        ("Где мой заказ?", "ru"),
        ("주문이 어디에 있나요", "ko"),
        ("私の注文はどこですか", "ja"),
        ("我的订单在哪里", "zh"),
        ("أين طلبي", "ar"),
        ("Πού είναι η παραγγελία μου", "el"),
        ("The word Москва is Russian for what we call Moscow", "en"),
        ("password reset", None),
        ("404", None),
        ("", None),
        ("\ud800", None),
        ("🙂🙂", None),
    ],
)
def test_languages_are_told_by_script_letters_and_stop_words(
    text: str, language: str | None
) -> None:
    assert detect_language(text) == language


def test_only_the_beginning_is_read() -> None:
    assert detect_language("word " * 10**6) is None
