"""Prompts: texts that a model wants before every query or document."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError

logger = logging.getLogger("ai_model_optimizations")


@dataclass(frozen=True)
class Prompts:
    """A model's prompts by name, and the name of the default one."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None

    def resolve(self, prompt_name: str | None, prompt: str | None) -> str:
        """Return the text to put before every input; the empty string for none.

        Raises
        ------
        TypeError
            If ``prompt`` is not a string.
        ValueError
            If the model has no prompt of that name, or ``prompt`` is not valid Unicode.
        """
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TypeError(f"prompt: expected str, got {type(prompt).__name__}")
            _check_text("prompt", prompt)
            if prompt_name is not None:
                logger.warning("prompt_name is ignored where a prompt is given")
            return prompt
        if prompt_name is None:
            prompt_name = self.default_name
        if prompt_name is None:
            return ""
        if prompt_name not in self.texts:
            raise ValueError(
                f"prompt_name: the model has no prompt {prompt_name!r}, only {sorted(self.texts)}"
            )
        return self.texts[prompt_name]


def read_prompts(config: Mapping[str, Any], file: Path) -> Prompts:
    """Read the prompts of config_sentence_transformers.json.

    As in sentence-transformers, ``query`` and ``document`` are always there, empty if need be.

    Raises
    ------
    ModelFormatError
        If they are not an object of strings, or the default is not one of them.
    """
    saved = config.get("prompts") or {}
    if not isinstance(saved, dict) or not all(
        isinstance(text, str) or text is None for text in saved.values()
    ):
        raise ModelFormatError(f"{file}: prompts must be an object of strings")
    try:
        for name, text in saved.items():
            _check_text(f"prompts[{name!a}]", text or "")
    except ValueError as error:
        raise ModelFormatError(f"{file}: {error}") from None
    texts = {"query": "", "document": ""} | {name: text or "" for name, text in saved.items()}
    default = config.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in texts):
        raise ModelFormatError(
            f"{file}: default_prompt_name {default!r} is none of the prompts {sorted(texts)}"
        )
    return Prompts(texts, default)


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what}: lone surrogate at position {error.start} is no valid text"
        ) from None
