"""AIMO_DISABLE: what it names is off, and what it cannot name is said."""

import logging

import pytest

from ai_model_optimizations._environment import disabled


def test_listed_features_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIMO_DISABLE", " Cache,batch,")
    assert disabled("cache") and disabled("batch") and not disabled("hook")


def test_a_name_that_is_none_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIMO_DISABLE", "bach,cache")
    with caplog.at_level(logging.WARNING, "ai_model_optimizations"):
        assert not disabled("batch") and disabled("cache")
        assert not disabled("batch")
    assert [record.getMessage() for record in caplog.records] == [
        "AIMO_DISABLE: 'bach' is none of batch, cache, guard, hook; nothing is turned off by it"
    ]
