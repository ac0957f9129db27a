"""Small sentence-transformers folders with random weights, written without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = (
    "the", "a", "of", "to", "in", "is", "file", "path", "read", "write", "string", "number",
    "value", "list", "time", "server", "test",
)  # fmt: skip


@dataclass
class BertFolder:
    """A BERT of any shape; :meth:`write` makes the folder."""

    hidden: int = 36
    heads: int = 3
    layers: int = 2
    intermediate: int = 50
    positions: int = 64
    pooling: str = "mean_tokens"
    normalize: bool = True
    max_seq_length: int | None = 48
    prefix: str = ""
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return random tensors by their names in transformers."""
        random = np.random.default_rng(self.seed)

        def normal(*shape: int, around: float = 0.0) -> NDArray[np.float32]:
            return (around + 0.2 * random.standard_normal(shape)).astype(np.float32)

        hidden, inner = self.hidden, self.intermediate
        tensors = {
            "embeddings.word_embeddings.weight": normal(len(vocabulary()), hidden),
            "embeddings.position_embeddings.weight": normal(self.positions, hidden),
            "embeddings.token_type_embeddings.weight": normal(2, hidden),
            "embeddings.LayerNorm.weight": normal(hidden, around=1.0),
            "embeddings.LayerNorm.bias": normal(hidden),
        }
        shapes = {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            for part, shape in shapes.items():
                tensors[f"{name}.{part}.weight"] = normal(*shape)
                tensors[f"{name}.{part}.bias"] = normal(shape[0])
            for part in ("attention.output.LayerNorm", "output.LayerNorm"):
                tensors[f"{name}.{part}.weight"] = normal(hidden, around=1.0)
                tensors[f"{name}.{part}.bias"] = normal(hidden)
        return tensors

    def write(self, path: Path) -> Path:
        """Write every file that the loader reads."""
        path.mkdir(parents=True, exist_ok=True)
        config = {
            "model_type": "bert",
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.positions,
            "vocab_size": len(vocabulary()),
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        }
        write_json(path / "config.json", config | self.config)
        kinds = ["Transformer", "Pooling"] + ["Normalize"] * self.normalize
        folders = ["", "1_Pooling", "2_Normalize"]
        modules = [
            {"idx": i, "path": folders[i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        write_json(path / "modules.json", modules)
        pooling = {"word_embedding_dimension": self.hidden, f"pooling_mode_{self.pooling}": True}
        write_json(path / "1_Pooling" / "config.json", pooling)
        if self.max_seq_length is not None:
            sentence = {"max_seq_length": self.max_seq_length, "do_lower_case": False}
            write_json(path / "sentence_bert_config.json", sentence)
        tokenizer().save(str(path / "tokenizer.json"))
        tensors = {self.prefix + name: tensor for name, tensor in self.weights().items()}
        save_file(tensors, str(path / "model.safetensors"))
        return path


def vocabulary() -> dict[str, int]:
    """Return a WordPiece vocabulary: special tokens, words, letters and their continuations."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,()"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def tokenizer() -> Tokenizer:
    """Return a WordPiece tokenizer as BERT's, with padding baked in as real files have it."""
    result = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    result.normalizer = normalizers.BertNormalizer(lowercase=True)
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    result.enable_padding(length=20)
    result.enable_truncation(20)
    return result


def write_json(path: Path, value: Any) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
