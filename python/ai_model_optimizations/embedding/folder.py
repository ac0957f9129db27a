"""Reads model folders that sentence-transformers or transformers wrote into one description."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError
from .families import Architecture, architecture_of
from .folder_state import FolderState
from .json_files import read_json, read_json_if_there
from .modules import Head, conversion_hint, read_head, transformer_folder
from .prompts import Prompts, read_prompts
from .space import space_id_of

logger = logging.getLogger("ai_model_optimizations")

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

_SHARD = re.compile(r"[\w.-]{1,180}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class ModelFolder:
    """What a folder says about its model."""

    path: Path
    #: Where the transformer's own files are: the folder itself, or a subfolder.
    transformer: Path
    architecture: Architecture
    head: Head
    prompts: Prompts
    #: The safetensors files; several when the weights are sharded.
    weights: tuple[Path, ...]
    #: For sharded weights: the file of every tensor, according to the index.
    shards: Mapping[str, Path]
    max_seq_length: int
    do_lower_case: bool
    #: How many elements of a vector are kept, if the folder wants fewer than the model gives.
    truncate_dim: int | None = None
    #: The files as they were when reading began.
    state: FolderState = field(default_factory=lambda: FolderState(()))

    @property
    def tokenizer(self) -> Path:
        """The tokenizers library's file."""
        return self.transformer / "tokenizer.json"

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Every file of weights, those of dense layers too."""
        return (*self.weights, *(layer.weights for layer in self.head.dense))

    @property
    def dimension(self) -> int:
        """Elements of a whole vector."""
        return self.head.dimension(self.architecture.hidden)

    def space_id(self) -> str:
        """Identify the space of whole vectors: equal ids give comparable vectors."""
        return space_id_of(self)

    def check_unchanged(self) -> None:
        """Raise ModelFormatError when a file has changed since the folder was read."""
        self.state.check_unchanged(self.path)


def read_folder(path: Path) -> ModelFolder:
    """Read the configurations: config.json, modules.json and what they lead to.

    Raises
    ------
    ModelFormatError
        If a file is missing, is no JSON or contradicts another; the message names it.
    UnsupportedError
        If the model needs something that the encoder lacks; the message names it.
    """
    state = FolderState.of(path)
    transformer = transformer_folder(path)
    config = transformer / "config.json"
    architecture = architecture_of(read_json(config), config)
    head = read_head(path, architecture.hidden)
    sentence_config = _sentence_config(transformer)
    model_config = path / "config_sentence_transformers.json"
    settings = read_json_if_there(model_config)
    weights, shards = _find_weights(transformer)
    folder = ModelFolder(
        path=path,
        transformer=transformer,
        architecture=architecture,
        head=head,
        prompts=read_prompts(settings, model_config),
        weights=weights,
        shards=shards,
        max_seq_length=_max_seq_length(transformer, sentence_config, architecture),
        do_lower_case=bool(sentence_config.get("do_lower_case", False)),
        truncate_dim=read_truncate_dim(settings, model_config, head.dimension(architecture.hidden)),
        state=state,
    )
    if not folder.tokenizer.is_file():
        raise ModelFormatError(
            f"{folder.tokenizer}: the file is missing{_tokenizer_hint(transformer)}"
        )
    if not (path / "modules.json").is_file():
        logger.info("%s has no modules.json: mean pooling, not normalised", path)
    return folder


def _sentence_config(path: Path) -> Mapping[str, Any]:
    for name in _SENTENCE_CONFIGS:
        if (path / name).is_file():
            return read_json(path / name)
    return {}


def _find_weights(path: Path) -> tuple[tuple[Path, ...], Mapping[str, Path]]:
    """Return the safetensors files, and of sharded ones which tensor each has."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return (single,), {}
    if not index.is_file():
        raise ModelFormatError(f"{single}: the file is missing{conversion_hint(path)}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelFormatError(f"{index}: weight_map must be an object and not empty")
    for file in shards.values():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise ModelFormatError(
                f"{index}: expected the name of a file beside it, got {str(file)[:200]!r}"
            )
    files = tuple(path / name for name in sorted(set(shards.values())))
    for shard in files:
        if not shard.is_file():
            raise ModelFormatError(f"{shard}: the file is missing, {index.name} names it")
    return files, {name: path / file for name, file in shards.items()}


def _tokenizer_hint(path: Path) -> str:
    old = [
        name
        for name in ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
        if (path / name).is_file()
    ]
    if not old:
        return ""
    return (
        f"; {old[0]} alone is not read: write it with "
        "transformers.AutoTokenizer.from_pretrained(path).save_pretrained(path)"
    )


def read_truncate_dim(config: Mapping[str, Any], file: Path, dimension: int) -> int | None:
    """Read ``truncate_dim`` of config_sentence_transformers.json; None when it is not there."""
    value = config.get("truncate_dim")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelFormatError(f"{file}: truncate_dim must be a positive integer, got {value!r}")
    return min(value, dimension)


def _max_seq_length(path: Path, config: Mapping[str, Any], architecture: Architecture) -> int:
    """Tokens of the longest sequence, special tokens included.

    tokenizer.json often bakes in another truncation (all-MiniLM-L6-v2: 128 instead of 256), so it
    is not asked.
    """
    positions = int(architecture.sizes["positions"]) - int(architecture.sizes["first_position"])
    limit = config.get("max_seq_length")
    if limit is None:
        limit = read_json_if_there(path / "tokenizer_config.json").get("model_max_length")
    if limit is None:
        return positions
    if not isinstance(limit, (int, float)) or not 1 <= limit < math.inf:
        raise ModelFormatError(f"{path}: max_seq_length must be positive, got {limit!r}")
    return int(min(limit, positions))
