"""Model folders as sentence-transformers writes them, read into one description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, UnsupportedError
from .families import Architecture, architecture_of

#: Where sentence-transformers has kept max_seq_length over the years.
_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

#: ``pooling_mode_*`` of sentence-transformers, by the core's name.
_POOLINGS = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last_token",
}
_POOLING_NAMES = {"lasttoken": "last_token", "weightedmean": "weighted_mean"}

#: How many pieces of a weight file go into its fingerprint, and how long each is.
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class ModelFolder:
    """What a folder says about its model."""

    path: Path
    architecture: Architecture
    pooling: str
    normalize: bool
    max_seq_length: int
    do_lower_case: bool

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.path / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        """The tokenizers library's file."""
        return self.path / "tokenizer.json"

    def space_id(self) -> str:
        """Identify the vector space: equal ids give comparable vectors.

        A SHA-256 over the weights (header, size and samples: it must be cheap), the tokenizer, the
        pooling, the normalisation and the output dimension. Precision is no part of it.
        """
        digest = hashlib.sha256()
        with self.weights.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(size.to_bytes(8, "little"))
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
        digest.update(self.tokenizer.read_bytes())
        rest = (self.pooling, self.normalize, self.architecture.hidden, self.do_lower_case)
        digest.update(repr(rest).encode())
        return digest.hexdigest()[:32]


def read_folder(path: Path) -> ModelFolder:
    """Read config.json, modules.json, the pooling's and the tokenizer's limits.

    Raises
    ------
    ModelFormatError
        If a file is missing, is no JSON or contradicts another; the message names it.
    UnsupportedError
        If the model needs something that the encoder lacks; the message names it.
    """
    architecture = architecture_of(read_json(path / "config.json"), path / "config.json")
    pooling, normalize = _read_modules(path, architecture)
    sentence_config = _first_json(path, _SENTENCE_CONFIGS)
    folder = ModelFolder(
        path=path,
        architecture=architecture,
        pooling=pooling,
        normalize=normalize,
        max_seq_length=_max_seq_length(path, sentence_config, architecture),
        do_lower_case=bool(sentence_config.get("do_lower_case", False)),
    )
    for file in (folder.weights, folder.tokenizer):
        if not file.is_file():
            raise ModelFormatError(f"{file}: the file is missing{_hint(file)}")
    return folder


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; ModelFormatError names the file otherwise."""
    value = _load(path)
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFormatError(f"{path}: the file is missing") from None
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not valid JSON: {error}") from error


def _first_json(path: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    for name in names:
        if (path / name).is_file():
            return read_json(path / name)
    return {}


def _hint(file: Path) -> str:
    if file.name == "model.safetensors" and (file.parent / "pytorch_model.bin").is_file():
        return (
            "; pytorch_model.bin is a pickle and is not read: load the model with transformers "
            "and save it again with save_pretrained(path, safe_serialization=True)"
        )
    return ""


def _read_modules(path: Path, architecture: Architecture) -> tuple[str, bool]:
    """Return the pooling and whether the model normalises, from modules.json in its order."""
    file = path / "modules.json"
    modules = _load(file)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ModelFormatError(f"{file}: expected a list of objects")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedError(
            f"{file}: modules {kinds} are not supported, "
            "expected Transformer, Pooling and perhaps Normalize"
        )
    if modules[0].get("path", "") != "":
        raise UnsupportedError(f"{file}: the Transformer must lie in the folder itself")
    pooling_file = path / str(modules[1].get("path", "1_Pooling")) / "config.json"
    return _read_pooling(pooling_file, architecture.hidden), kinds[-1] == "Normalize"


def _read_pooling(file: Path, hidden: int) -> str:
    config = read_json(file)
    dimension = config.get("word_embedding_dimension", config.get("embedding_dimension", hidden))
    if dimension != hidden:
        raise ModelFormatError(
            f"{file}: word_embedding_dimension is {dimension}, but hidden_size is {hidden}"
        )
    modes = config.get("pooling_mode")
    if modes is None:
        chosen = [ours for key, ours in _POOLINGS.items() if config.get(f"pooling_mode_{key}")]
    else:
        names = [modes] if isinstance(modes, str) else list(modes)
        chosen = [_POOLING_NAMES.get(name, name) for name in names]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS.values():
        raise UnsupportedError(f"{file}: expected one known pooling mode, got {chosen}")
    return str(chosen[0])


def _max_seq_length(path: Path, config: Mapping[str, Any], architecture: Architecture) -> int:
    """Tokens of the longest sequence, special tokens included.

    tokenizer.json often bakes in another truncation (all-MiniLM-L6-v2: 128 instead of 256), so it
    is not asked.
    """
    positions = int(architecture.sizes["positions"]) - int(architecture.sizes["first_position"])
    limit = config.get("max_seq_length")
    if limit is None and (path / "tokenizer_config.json").is_file():
        limit = read_json(path / "tokenizer_config.json").get("model_max_length")
    if limit is None:
        return positions
    if not isinstance(limit, (int, float)) or limit < 1:
        raise ModelFormatError(f"{path}: max_seq_length must be positive, got {limit!r}")
    return int(min(limit, positions))
