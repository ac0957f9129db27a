"""EmbeddingModel: a sentence-embedding model whose forward pass runs in the C core."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import ModelFormatError
from .families import Family
from .folder import ModelFolder, read_folder
from .lookup import DEFAULT_MODEL, find_model
from .packed_cache import load_through_cache
from .packed_file import FILE_NAME, find_packed
from .packed_model import ModelParts, check_target, read_parts, write_parts
from .tensors import TensorFile
from .tokenization import TextTokenizer

DType = Literal["f32", "f16", "bf16"]
DTYPES: tuple[DType, ...] = ("f32", "f16", "bf16")


def resolve_dtype(dtype: str) -> DType:
    """Return the storage type that ``dtype`` stands for on this machine.

    ``"auto"`` is the fastest 16-bit type: bf16 where the AMX row runs, else f16.
    """
    if dtype == "auto":
        return "bf16" if _core.cpu_info()["row"] == "amx" else "f16"
    for known in DTYPES:
        if dtype == known:
            return known
    raise ValueError(f"dtype: expected 'auto' or one of {DTYPES}, got {dtype!r}")


class EmbeddingModel:
    """A sentence-embedding model.

    Weights are kept in 16 bits (or ``"f32"``), everything is computed in 32. A text's vector
    depends on nothing but the text: not on the batch it is in, its order or size, nor on the number
    of threads; bit for bit. Models are immutable; any number of threads may call one at once.

    Use :meth:`load`; the constructor is for the package itself.
    """

    def __init__(
        self,
        encoder: _core.Encoder,
        tokenizer: TextTokenizer,
        folder: ModelFolder,
        dtype: DType,
        space_id: str,
    ) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._folder = folder
        self._dtype: DType = dtype
        self._space_id = space_id

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str] = DEFAULT_MODEL, dtype: str = "auto"
    ) -> EmbeddingModel:
        """Load a sentence-transformers model with BERT weights.

        Parameters
        ----------
        name_or_path : a folder, or a name: looked for in the local Hugging Face cache, then in an
            installed package that carries the model, then on the hub
        dtype : ``"f32"``, ``"f16"``, ``"bf16"`` or ``"auto"``, the machine's fastest 16-bit type

        A folder that :meth:`save` wrote (or the file in it) is mapped: nothing is converted, and
        processes share the weights. Its dtype is the file's; ``"auto"`` takes it. With
        ``AIMO_CACHE_DIR`` set, that folder keeps the packed form of what is loaded, for the next
        process.

        Returns
        -------
        The model. While one is in use, loading the same files with the same dtype returns it again:
        a process holds one copy of the weights.

        Raises
        ------
        FileNotFoundError
            If there is no such model.
        ModelFormatError
            If a file of the folder is damaged or contradicts another; the message names it.
        UnsupportedError
            If the model needs something that the encoder lacks; the message names it.
        ValueError
            If ``dtype`` is unknown, or a packed model has another.
        """
        storage = resolve_dtype(dtype)
        path = find_model(name_or_path)
        packed = find_packed(path)
        if packed is not None:
            return _load_packed(packed, None if dtype == "auto" else storage)
        if path.is_file():
            raise ModelFormatError(f"{path}: expected a model folder or a packed model, got a file")
        folder = read_folder(path)
        space_id = folder.space_id()
        with _loading:
            key = (str(folder.path.resolve()), storage, space_id)
            model = _loaded.get(key)
            if model is None:
                model = _load_folder(folder, storage, space_id)
                _loaded[key] = model
            return model

    @property
    def dimension(self) -> int:
        """Elements of a vector."""
        return self._folder.architecture.hidden

    def get_sentence_embedding_dimension(self) -> int:
        """Return :attr:`dimension`, by its name in sentence-transformers."""
        return self.dimension

    @property
    def dtype(self) -> DType:
        """Storage type of the weights."""
        return self._dtype

    @property
    def max_seq_length(self) -> int:
        """Tokens beyond which a text is cut, special tokens included."""
        return self._folder.max_seq_length

    @property
    def normalizes(self) -> bool:
        """Whether the model itself gives vectors of unit L2 norm."""
        return self._folder.normalize

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights held."""
        return self._encoder.weight_bytes

    @property
    def path(self) -> Path:
        """The folder that the model was loaded from."""
        return self._folder.path

    @property
    def space_id(self) -> str:
        """Identity of the vector space; vectors of different spaces must not be compared."""
        return self._space_id

    def __repr__(self) -> str:
        return (
            f"EmbeddingModel({self.path.name!r}, dtype={self.dtype!r}, dimension={self.dimension}, "
            f"{self.memory_bytes / 1e6:.1f} MB)"
        )

    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        normalize_embeddings: bool = False,
    ) -> NDArray[np.float32]:
        """Embed texts.

        Parameters
        ----------
        texts : one string, or a sequence of them
        batch_size : texts that are tokenized and computed together; it changes the speed alone
        show_progress_bar : True or False; None shows one for large inputs on a terminal
        normalize_embeddings : scale the vectors to unit L2 norm even if the model does not

        Returns
        -------
        (n, dimension) float32 in the order of the texts; (dimension,) for one string

        Raises
        ------
        TypeError
            If ``texts`` or one of its elements is no string.
        ValueError
            If ``batch_size`` is not positive or a text is no valid Unicode.
        """
        if isinstance(texts, str):
            vector: NDArray[np.float32] = self._encode_batch([texts], normalize_embeddings)[0]
            return vector
        texts = _as_sequence(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
        out = np.empty((len(texts), self.dimension), dtype=np.float32)
        starts: Iterable[int] = range(0, len(texts), batch_size)
        for start in _with_progress_bar(starts, show_progress_bar):
            batch = texts[start : start + batch_size]
            out[start : start + len(batch)] = self._encode_batch(
                batch, normalize_embeddings, first=start
            )
        return out

    def _encode_batch(
        self, texts: Sequence[str], normalize: bool, first: int = 0
    ) -> NDArray[np.float32]:
        tokens = self._tokenizer.pack(texts, first)
        return self._encoder.encode(*tokens, self.normalizes or normalize)

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many tokens of each text the model sees, special tokens included; (n,)."""
        return np.diff(self._tokenizer.pack(_as_sequence(texts)).offsets)

    def astype(self, dtype: str) -> EmbeddingModel:
        """Return this model with its weights stored as ``dtype``; itself when they are already.

        Raises
        ------
        ValueError
            If the weights are stored in 16 bits and another type is asked for: rounding twice
            would lose more than the type must. Load the model again instead.
        """
        storage = resolve_dtype(dtype)
        if storage == self._dtype:
            return self
        if self._dtype != "f32":
            raise ValueError(
                f"dtype: the weights are {self._dtype} already; "
                f"use EmbeddingModel.load({str(self.path)!r}, dtype={storage!r})"
            )
        encoder = _new_encoder(self._folder, storage)
        for name, per_layer in _core.encoder_tensor_names():
            for layer in range(self._folder.architecture.layers if per_layer else 1):
                encoder.set_tensor(name, layer, self._encoder.tensor(name, layer))
        encoder.seal()
        return EmbeddingModel(encoder, self._tokenizer, self._folder, storage, self._space_id)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model, packed, into a folder that :meth:`load` maps.

        The one file in it, ``packed.safetensors``, holds weights, tokenizer and settings, and can
        be loaded by itself. It appears whole or not at all; a packed model that lay there before
        is replaced, and processes that use it keep what they have mapped. Permissions follow the
        umask.

        Parameters
        ----------
        path : a folder that does not exist, is empty, or holds a packed model

        Returns
        -------
        The file.

        Raises
        ------
        FileExistsError
            If ``path`` is a file or a folder with anything else in it.
        OSError
            If it cannot be written, as on a full disk; nothing is left then.
        """
        folder = Path(path).expanduser()
        check_target(folder)
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / FILE_NAME
        try:
            write_parts(file, self._parts())
        except BaseException:
            if new:
                folder.rmdir()
            raise
        return file

    def _parts(self) -> ModelParts:
        return ModelParts(self._encoder, self._tokenizer, self._folder, self._dtype, self._space_id)


_loading = threading.RLock()
#: Models in use, by folder, dtype and content.
_loaded: weakref.WeakValueDictionary[tuple[str, str, str], EmbeddingModel] = (
    weakref.WeakValueDictionary()
)


def _reset_lock_after_fork() -> None:
    global _loading
    _loading = threading.RLock()


os.register_at_fork(after_in_child=_reset_lock_after_fork)


def _as_sequence(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, (Sequence, np.ndarray)):
        raise TypeError(f"texts: expected str or a sequence of str, got {type(texts).__name__}")
    return texts


def _with_progress_bar(starts: Iterable[int], wanted: bool | None) -> Iterable[int]:
    """Wrap the batches in a tqdm bar when one is wanted and tqdm is installed."""
    batches = list(starts)
    if wanted is None:
        wanted = len(batches) >= 100 and sys.stderr.isatty()
    if not wanted:
        return batches
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return batches
    bar: Iterable[int] = tqdm(batches, desc="Batches")
    return bar


def _new_encoder(folder: ModelFolder, dtype: DType) -> _core.Encoder:
    sizes: dict[str, Any] = dict(folder.architecture.sizes)
    return _core.Encoder(dtype=dtype, pooling=folder.pooling, **sizes)


def _load_packed(file: Path, dtype: DType | None) -> EmbeddingModel:
    """Return the model in a packed file; None takes the dtype that it has."""
    stat = file.stat()
    with _loading:
        # A file that was replaced has another inode.
        key = (str(file.resolve()), "packed", f"{stat.st_ino}-{stat.st_mtime_ns}")
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = _model_of(read_parts(file))
    if dtype not in (None, model.dtype):
        raise ValueError(
            f"dtype: {file} holds {model.dtype}, not {dtype}; "
            "use dtype='auto', or load the model that it was packed from"
        )
    return model


def _model_of(parts: ModelParts) -> EmbeddingModel:
    return EmbeddingModel(*parts[:3], resolve_dtype(parts.dtype), parts.space_id)


def _load_folder(folder: ModelFolder, dtype: DType, space_id: str) -> EmbeddingModel:
    def read(path: Path) -> EmbeddingModel:
        parts = read_parts(path, folder)
        if (parts.dtype, parts.space_id) != (dtype, space_id):
            raise ModelFormatError(f"{path}: another model's file under this name")
        return _model_of(parts)

    return load_through_cache(
        folder,
        dtype,
        space_id,
        pack=lambda: _pack(folder, dtype, space_id),
        write=lambda model, path: write_parts(path, model._parts(), mode=0o600),
        read=read,
    )


def _pack(folder: ModelFolder, dtype: DType, space_id: str) -> EmbeddingModel:
    encoder = _new_encoder(folder, dtype)
    with TensorFile(folder.weights) as file:
        _fill(encoder, file, folder.architecture.family, folder.architecture.layers)
    try:
        encoder.seal()
    except ModelFormatError as error:
        raise ModelFormatError(f"{folder.weights}: {error}") from None
    tokenizer = TextTokenizer(
        folder.tokenizer,
        max_length=folder.max_seq_length,
        vocabulary=int(folder.architecture.sizes["vocabulary"]),
        do_lower_case=folder.do_lower_case,
    )
    return EmbeddingModel(encoder, tokenizer, folder, dtype, space_id)


def _fill(encoder: _core.Encoder, file: TensorFile, family: Family, layers: int) -> None:
    """Give every tensor of the file to the encoder; refuse those that it has no place for."""
    places = {
        name.format(layer=layer): (ours, layer)
        for name, ours in family.tensors.items()
        for layer in range(layers if "{layer}" in name else 1)
    }
    for full_name in file:
        name = _without_prefix(full_name, family)
        if name.startswith(family.ignored):
            continue
        if name not in places:
            raise ModelFormatError(
                f"{file.path}: tensor {full_name!r} has no place in this model; "
                "does config.json belong to these weights?"
            )
        ours, layer = places[name]
        try:
            encoder.set_tensor(ours, layer, file.read(full_name))
        except ValueError as error:
            raise ModelFormatError(f"{file.path}: tensor {full_name!r}: {error}") from None


def _without_prefix(name: str, family: Family) -> str:
    for prefix in family.prefixes:
        if prefix and name.startswith(prefix):
            name = name[len(prefix) :]
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
