"""From a SentenceTransformer in memory to an EmbeddingModel."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..embedding import EmbeddingModel
from ..embedding.dtypes import DType, resolve_dtype
from ..embedding.folder import ModelFolder, read_folder
from ..embedding.folder_state import FolderState
from ..embedding.lookup import find_model
from ..embedding.modules import Dense
from ..embedding.tensors import TensorFile
from ..embedding.tokenization import TextTokenizer
from ..embedding.weights import TensorNames, family_places, new_encoder
from ..errors import UnsupportedError
from .report import ITEM_BYTES, TensorReport, rest_report
from .rounding import Rounding, add_difference
from .torch_modules import as_f32

#: Both tokenizers must agree on these: case, accents, several scripts, special tokens, nothing.
_PROBES = (
    "",
    "Hello, World! It's 12:30; e-mail me@example.com.",
    "  Größe,\tnaïve café\nŞişli'de İstanbul ışığı ",
    "東京で寿司を食べました。 Привет, мир! مرحبا 🙂",
    "before [SEP] after <s> and </s>",
    "word " * 700,
)

#: How many elements of a tensor go into the identity of its vector space.
_SAMPLES = 4096


def transformer_of(model: Any) -> tuple[torch.nn.Module, str, torch.nn.Module]:
    """Return the first module, the name of the transformers model in it, and that model.

    Raises
    ------
    UnsupportedError
        If the first module runs no transformers model in torch.
    """
    from transformers import PreTrainedModel

    first = next(iter(model._modules.values()))
    for name, module in first._modules.items():
        if isinstance(module, PreTrainedModel):
            return first, name, module
    raise UnsupportedError(f"{type(first).__name__} holds no transformers model that runs in torch")


def describe(model: Any) -> tuple[ModelFolder, TextTokenizer]:
    """Read a SentenceTransformer's settings as if it had been saved, without its weights.

    Raises
    ------
    UnsupportedError, ModelFormatError
        If the C encoder does not run such a model; the text says why.
    """
    first, _, transformer = transformer_of(model)
    backend = getattr(first.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError("its tokenizer is none of the tokenizers library")
    with tempfile.TemporaryDirectory(prefix="aimo-") as name:
        path = Path(name)
        _write_settings(model, first, transformer, path)
        (path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        folder = read_folder(path)
        tokenizer = _tokenizer(folder)
    tokenizer.share_vocabulary(backend)
    _check_tokenizer(first, tokenizer, folder.max_seq_length)
    _check_tensors(folder, transformer)
    path = Path(_name_of(transformer))
    head = replace(folder.head, dense=_without_files(folder))
    # What was written is gone: only the settings stay.
    folder = replace(
        folder, path=path, transformer=path, head=head, weights=(), shards={}, state=FolderState(())
    )
    return folder, tokenizer


def _write_settings(model: Any, first: torch.nn.Module, transformer: Any, path: Path) -> None:
    def write_json(name: str, content: object) -> None:
        (path / name).write_text(json.dumps(content), encoding="utf-8")

    transformer.config.to_json_file(str(path / "config.json"), use_diff=False)
    entries = []
    for index, (name, module) in enumerate(model._modules.items()):
        folder = "" if index == 0 else f"{index}_{type(module).__name__}"
        kind = f"{type(module).__module__}.{type(module).__name__}"
        entries.append({"idx": index, "name": name, "path": folder, "type": kind})
        if index > 0:
            save = getattr(module, "save", None)
            if save is None:
                raise UnsupportedError(f"its module {type(module).__name__} cannot be saved")
            (path / folder).mkdir()
            save(str(path / folder))
    write_json("modules.json", entries)
    settings = {
        "max_seq_length": model.max_seq_length,
        "do_lower_case": bool(getattr(first, "do_lower_case", False)),
    }
    write_json("sentence_bert_config.json", settings)
    library = {
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "truncate_dim": model.truncate_dim,
    }
    write_json("config_sentence_transformers.json", library)
    # Only asked whether it is there; the tensors come from memory.
    (path / "model.safetensors").touch()


def _tokenizer(folder: ModelFolder) -> TextTokenizer:
    return TextTokenizer(
        folder.tokenizer,
        max_length=folder.max_seq_length,
        vocabulary=int(folder.architecture.sizes["vocabulary"]),
        do_lower_case=folder.do_lower_case,
    )


def _check_tokenizer(first: Any, tokenizer: TextTokenizer, max_length: int) -> None:
    """Refuse when sentence-transformers would see other tokens in a text than we do."""
    for probe in _PROBES:
        text = probe.lower() if getattr(first, "do_lower_case", False) else probe
        theirs = first.tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        ours = tokenizer.pack([probe]).token_ids.tolist()
        if ours != list(theirs):
            raise UnsupportedError(f"its tokenizer gives other tokens for {probe[:30]!r}")


def _name_of(transformer: Any) -> str:
    name: str = getattr(transformer.config, "_name_or_path", "") or type(transformer).__name__
    return name


def _without_files(folder: ModelFolder) -> tuple[Dense, ...]:
    return tuple(replace(layer, weights=folder.path) for layer in folder.head.dense)


def _check_tensors(folder: ModelFolder, transformer: Any) -> None:
    """Refuse, before anything is freed, a model that was taken apart since its config was made."""
    encoder = new_encoder(folder, "f32")  # without weights, it says what they would be
    expected = {
        name: encoder.tensor_shape(tensor)
        for name, (tensor, _) in places_of(folder).items()
        if not _is_dense(name)
    }
    found = dict(transformer.named_parameters())
    for name in {*expected, *found}:
        if name not in expected and name.startswith(folder.architecture.family.ignored):
            continue
        if name not in found or expected.get(name) != tuple(found[name].shape):
            raise UnsupportedError(f"{name}: not as config.json of such a model says")


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    """Return what the encoder may take, by name: the transformer's, and ``dense_0.weight``, ..."""
    _, _, transformer = transformer_of(model)
    parameters: dict[str, torch.Tensor] = dict(transformer.named_parameters())
    dense = [m for m in model._modules.values() if type(m).__name__ == "Dense"]
    for index, module in enumerate(dense):
        for name, parameter in module.linear.named_parameters():
            parameters[f"dense_{index}.{name}"] = parameter
    return parameters


def pack(
    model: Any,
    folder: ModelFolder,
    tokenizer: TextTokenizer,
    dtype: str,
    found: Mapping[str, Rounding],
    *,
    free: bool,
) -> EmbeddingModel:
    """Give a SentenceTransformer's tensors to the encoder.

    Parameters
    ----------
    found : by the tensor's name; what int8 costs is added
    free : give each tensor of the transformer back when it has been packed; the model is of no use
        then
    """
    storage = resolve_dtype(dtype)
    parameters, places = parameters_of(model), places_of(folder)
    space_id = _space_id(folder, parameters, tokenizer)
    # Eight bits are rounded from a whole model, which shows its outlier channels.
    first: DType = "f32" if storage == "int8" else storage
    encoder = new_encoder(folder, first)
    for name, parameter in parameters.items():
        if name in places:
            encoder.set_tensor(*places[name], as_f32(parameter))
        if free and not _is_dense(name):
            parameter.data = torch.empty(0)
    for index, layer in enumerate(folder.head.dense):
        if not layer.bias:
            encoder.set_tensor(f"dense_{index}.bias", 0, np.zeros(layer.outputs, np.float32))
    encoder.seal()
    full = EmbeddingModel(encoder, tokenizer, folder, first, space_id)
    packed = full.astype(storage)
    if storage == "int8":
        for name, place in places.items():
            if name in found and (before := encoder.tensor(*place)).ndim > 1:
                add_difference(before, packed._encoder.tensor(*place), found[name])
    return packed


def tensor_reports(
    model: Any, folder: ModelFolder, dtype: str, found: Mapping[str, Rounding]
) -> list[TensorReport]:
    """Return what :func:`pack` does to each tensor.

    Parameters
    ----------
    found : what rounding costs, by the tensor's name
    """
    places = places_of(folder)
    reports = [
        _tensor_report(name, tensor, dtype, name in places, found)
        for name, tensor in parameters_of(model).items()
    ]
    # The encoder allocates nothing before a tensor is set.
    used = sum(_packed_bytes(r.shape, dtype) for r in reports if r.action != "removed")
    padding = new_encoder(folder, dtype).weight_bytes - used
    if padding:
        reports.append(rest_report(dtype, padding))
    return reports


def _packed_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * (4 if len(shape) == 1 else ITEM_BYTES[dtype])


def _tensor_report(
    name: str, tensor: torch.Tensor, dtype: str, used: bool, found: Mapping[str, Rounding]
) -> TensorReport:
    shape, before = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    before = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(before, before)
    size = tensor.numel() * tensor.element_size()
    if not used:
        reason = "the vectors do not depend on it"
        return TensorReport(name, shape, before, "", size, 0, "removed", reason)
    after = _packed_bytes(shape, dtype)
    if _is_dense(name):
        reason = f"packed as well; the {before} layer stays for calls of single modules"
        return TensorReport(name, shape, before, before, size, size + after, "kept", reason)
    if tensor.ndim == 1:
        reason = "a vector: biases and norms stay in f32"
        return TensorReport(name, shape, before, "f32", size, after, "kept", reason)
    figures = found[name].figures() if name in found else {}
    return TensorReport(name, shape, before, dtype, size, after, "quantized", **figures)


def _is_dense(name: str) -> bool:
    return name.startswith("dense_")


def places_of(folder: ModelFolder) -> dict[str, tuple[str, int]]:
    """Return the encoder's tensor and layer for each name of :func:`parameters_of`."""
    places = family_places(folder)
    for index in range(len(folder.head.dense)):
        for part in ("weight", "bias"):
            places[f"dense_{index}.{part}"] = (f"dense_{index}.{part}", 0)
    return places


def _space_id(
    folder: ModelFolder, parameters: Mapping[str, torch.Tensor], tokenizer: TextTokenizer
) -> str:
    """The id of the folder that the model was loaded from, when nothing was changed since.

    Else a hash over samples of the tensors, the tokenizer and the settings.
    """
    source = _unchanged_source(folder, parameters)
    if source is not None:
        return source.space_id()
    digest = hashlib.sha256()
    for name, tensor in parameters.items():
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(as_f32(flat[::step]).tobytes())
    digest.update(tokenizer.packed().content)
    digest.update(repr(_settings_of(folder)).encode())
    return digest.hexdigest()[:32]


def _settings_of(folder: ModelFolder) -> tuple[Any, ...]:
    """What vectors depend on beside weights and tokenizer."""
    head = folder.head
    dense = [(layer.outputs, layer.activation) for layer in head.dense]
    rest = (head.poolings, head.include_prompt, dense, head.normalize, folder.do_lower_case)
    return (*rest, folder.architecture.hidden)


def _unchanged_source(
    folder: ModelFolder, parameters: Mapping[str, torch.Tensor]
) -> ModelFolder | None:
    """The folder on this machine with the very tensors and settings of the model in memory."""
    try:
        source = read_folder(find_model(folder.path, download=False))
        if _settings_of(source) != _settings_of(folder):
            return None
        with ExitStack() as stack:
            files = [stack.enter_context(TensorFile(path)) for path in source.weights]
            tensors = [(name, file, full) for name, file, full in TensorNames(source, files)]
            for index, layer in enumerate(source.head.dense):
                file = stack.enter_context(TensorFile(layer.weights))
                tensors += [(f"dense_{index}.{n.rpartition('.')[2]}", file, n) for n in file]
            for name, file, full in tensors:
                if not np.array_equal(file.read(full), parameters[name].detach().numpy()):
                    return None
    except (OSError, ValueError, TypeError, RuntimeError, KeyError):
        return None
    return source


def with_max_seq_length(model: EmbeddingModel, limit: int, tokenizer: Any) -> EmbeddingModel:
    """Return the same weights with texts cut at another length.

    Parameters
    ----------
    tokenizer : the transformers tokenizer, whose limit is not asked
    """
    folder = model._folder
    sizes = folder.architecture.sizes
    longest = int(sizes["positions"]) - int(sizes["first_position"])
    if not isinstance(limit, (int, float)) or limit < 1:
        raise ValueError(f"max_seq_length: expected a positive number, got {limit!r}")
    with tempfile.TemporaryDirectory(prefix="aimo-") as name:
        path = Path(name)
        content = tokenizer.backend_tokenizer.to_str()
        (path / "tokenizer.json").write_text(content, encoding="utf-8")
        limit = int(min(limit, longest))
        short = replace(folder, path=path, transformer=path, max_seq_length=limit)
        text_tokenizer = _tokenizer(short)
    short = replace(short, path=folder.path, transformer=folder.transformer)
    return EmbeddingModel(
        model._encoder,
        text_tokenizer,
        short,
        model.dtype,
        model._space_id,
        model._options,
        model._device,
    )
