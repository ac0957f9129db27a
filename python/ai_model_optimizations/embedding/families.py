"""Model families: how their config.json and tensor names map to the core.

A family is data. A new one adds a row to :data:`FAMILIES` and, where the forward pass itself
differs, an option to the core's encoder; there is no second encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, UnsupportedError
from .json_files import positive_integer as _size

#: ``hidden_act`` of transformers, by the core's name.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclass(frozen=True)
class Family:
    """One row: how a ``model_type`` maps to the core's encoder."""

    #: Tensor name in the file -> tensor name in the core; ``{layer}`` stands for the number.
    tensors: Mapping[str, str]
    #: The tensor by which the prefix of all names is found ("", "bert.", "0.auto_model.", ...).
    anchor: str
    #: Tensors that show the sizes of config.json, as names of :attr:`Architecture.sizes`.
    shapes: Mapping[str, tuple[str, ...]]
    #: Tensors of the file that the encoder has no use for, by the beginning of their name.
    ignored: tuple[str, ...]
    #: Position of the first token.
    first_position: int = 0


_BERT_LAYER = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "output_norm",
}

BERT = Family(
    tensors={
        "embeddings.word_embeddings.weight": "word_embeddings",
        "embeddings.position_embeddings.weight": "position_embeddings",
        "embeddings.token_type_embeddings.weight": "token_type_embeddings",
        "embeddings.LayerNorm.weight": "embedding_norm.weight",
        "embeddings.LayerNorm.bias": "embedding_norm.bias",
    }
    | {
        f"encoder.layer.{{layer}}.{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in _BERT_LAYER.items()
        for part in ("weight", "bias")
    },
    anchor="embeddings.word_embeddings.weight",
    shapes={
        "embeddings.word_embeddings.weight": ("vocabulary", "hidden"),
        "embeddings.position_embeddings.weight": ("positions", "hidden"),
        "embeddings.token_type_embeddings.weight": ("token_types", "hidden"),
        "encoder.layer.{layer}.intermediate.dense.weight": ("intermediate", "hidden"),
    },
    # Pooler and heads of other tasks; buffers that old versions saved.
    ignored=(
        "pooler.", "cls.", "classifier.", "qa_outputs.", "embeddings.position_ids",
        "embeddings.token_type_ids",
    ),
)

FAMILIES: Mapping[str, Family] = {"bert": BERT}


@dataclass(frozen=True)
class Architecture:
    """A model's family and its sizes, from config.json."""

    family: Family
    #: Keyword arguments of ``_core.Encoder``, but for dtype and what comes after the layers.
    sizes: Mapping[str, Any]

    @property
    def hidden(self) -> int:
        """Elements of a token's vector."""
        return int(self.sizes["hidden"])

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return int(self.sizes["layers"])


def architecture_of(config: Mapping[str, Any], path: Path) -> Architecture:
    """Read a transformers ``config.json``.

    Raises
    ------
    UnsupportedError
        If the model needs something that the encoder lacks; the message names the setting.
    ModelFormatError
        If a size is missing or not a positive integer.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(f"{path}: model_type {model_type!r} is not known, only {known}")
    _refuse_variants(config, path)
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UnsupportedError(f"{path}: hidden_act {activation!r} is not supported")
    sizes: dict[str, Any] = {
        "layers": _size(config, "num_hidden_layers", path),
        "hidden": _size(config, "hidden_size", path),
        "heads": _size(config, "num_attention_heads", path),
        "intermediate": _size(config, "intermediate_size", path),
        "vocabulary": _size(config, "vocab_size", path),
        "positions": _size(config, "max_position_embeddings", path),
        "token_types": _size(config, "type_vocab_size", path, default=2),
        "first_position": family.first_position,
        "activation": ACTIVATIONS[activation],
        "layer_norm_epsilon": _epsilon(config, path),
    }
    if sizes["hidden"] % sizes["heads"] != 0:
        raise ModelFormatError(
            f"{path}: hidden_size {sizes['hidden']} is no multiple of "
            f"num_attention_heads {sizes['heads']}"
        )
    return Architecture(family, sizes)


def _refuse_variants(config: Mapping[str, Any], path: Path) -> None:
    """Refuse models that say ``bert`` but are not: they would load and give wrong vectors."""
    refusals = {
        "auto_map": None,
        "is_decoder": False,
        "add_cross_attention": False,
        "position_embedding_type": "absolute",
    }
    for key, harmless in refusals.items():
        value = config.get(key)
        if value is not None and value != harmless:
            raise UnsupportedError(f"{path}: {key} = {value!r} is not supported")


def _epsilon(config: Mapping[str, Any], path: Path) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if not isinstance(value, float) or not 0.0 < value < 1.0:
        raise ModelFormatError(f"{path}: layer_norm_eps must lie between 0 and 1, got {value!r}")
    return value
