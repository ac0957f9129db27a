"""EmbeddingModel: a sentence-embedding model whose forward pass runs in the C core."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._files import given_path
from ..device_array import DeviceArray
from ..devices import CPU, device_name, parse_device
from ..errors import ModelFormatError
from .arguments import check_count, check_dimension, check_texts
from .dtypes import DType, resolve_dtype
from .encode_call import EncodeCall
from .folder import ModelFolder, read_folder
from .lookup import DEFAULT_MODEL, find_model
from .models_in_use import in_use
from .packed_file import FILE_NAME, find_packed
from .packed_model import ModelParts, check_target, read_parts, write_parts
from .packing import convert, load_folder
from .space import narrowed
from .tokenization import TextTokenizer
from .truncation import OnTruncate, TruncationLog, TruncationReport, check_policy


class Options(NamedTuple):
    """What :meth:`EmbeddingModel.load` may choose beside the storage type."""

    #: Elements of a vector that are kept; None is what the model's files say.
    truncate_dim: int | None = None
    on_truncate: OnTruncate = "warn"


class EmbeddingModel:
    """A sentence-embedding model.

    Weights are kept in 16 bits (or ``"f32"``), everything is computed in 32. A text's vector
    depends on nothing but the text: not on the batch it is in, its order or size, nor on the number
    of threads; bit for bit. Models are immutable; any number of threads may call one at once. A
    pickle has the packed weights, or the place of the packed file that the model was loaded from.

    Use :meth:`load`; the constructor is for the package itself.
    """

    def __init__(
        self,
        encoder: _core.Encoder,
        tokenizer: TextTokenizer,
        folder: ModelFolder,
        dtype: DType,
        space_id: str,
        options: Options = Options(),  # noqa: B008 - immutable
        device: int = CPU,
    ) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._folder = folder
        self._dtype: DType = dtype
        self._space_id = space_id  # of whole vectors
        self._options = options
        self._device = device
        narrow = options.truncate_dim if options.truncate_dim is not None else folder.truncate_dim
        self._dimension = check_dimension(narrow, folder.dimension)
        self._truncation = TruncationLog(folder.max_seq_length)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] = DEFAULT_MODEL,
        dtype: str = "auto",
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        truncate_dim: int | None = None,
        on_truncate: str = "warn",
        device: str = "cpu",
    ) -> EmbeddingModel:
        """Load a model with BERT weights, as sentence-transformers or transformers saved it.

        A folder written by :meth:`save` (or the file in it) is memory-mapped: nothing is converted,
        and processes share the weights. It keeps the dtype it was saved with, which ``"auto"``
        accepts. If ``AIMO_CACHE_DIR`` is set, models are kept there in packed form, so that later
        processes map them too.

        Parameters
        ----------
        name_or_path : a folder, or a name: looked up in the local Hugging Face cache, then in an
            installed package that carries the model, then on the hub
        dtype : ``"f32"``, ``"f16"``, ``"bf16"``, ``"int8"`` or ``"auto"``, the machine's fastest
            16-bit type. int8 is the least accurate, see docs/quantization.md

        revision : branch, tag or commit of a name on the hub; None is the main branch
        local_files_only : never contact the hub
        truncate_dim : keep only the first elements of every vector, for models trained for it
            (Matryoshka); vectors of a model that normalises still have unit length. None takes the
            folder's setting, or the whole vector if it has none
        on_truncate : what to do with a text longer than :attr:`max_seq_length`: ``"warn"`` through
            the package's logger, at most once a minute; ``"error"`` raises a ValueError;
            ``"ignore"``. Truncated texts are always counted in :attr:`truncation`
        device : ``"cpu"``; ``"cuda"`` or ``"cuda:N"``, a CUDA device, to which the weights are
            copied; ``"auto"``, the first CUDA device if one can be used, else the CPU. See
            docs/gpu.md

        Returns
        -------
        The model. While it is in use, loading the same files with the same arguments returns the
        same object; with other options but the same dtype and device, the result shares its
        weights. A process holds one copy of them.

        Raises
        ------
        TypeError
            If ``name_or_path`` is neither a string nor a path.
        FileNotFoundError
            If the model is not found.
        ValueError
            If ``dtype`` is unknown or differs from a packed model's, ``truncate_dim`` is larger
            than the model's vectors, ``on_truncate`` or ``device`` is not one of the above, the
            device does not exist, or ``revision`` is given with a folder.
        ModelFormatError
            If a file in the folder is damaged, contradicts another or changes while it is read;
            the message names it.
        UnsupportedError
            If the model needs something the encoder does not support, or CUDA cannot be used; the
            message says what is missing.
        DeviceError
            If the device fails, or the process was forked after CUDA had been started.
        MemoryError
            If the weights do not fit on the device.
        """
        where = parse_device(device)
        storage = resolve_dtype(dtype, where)
        options = Options(truncate_dim, check_policy(on_truncate))
        path = find_model(name_or_path, revision=revision, download=not local_files_only)
        packed = find_packed(path)
        if packed is not None:
            return _load_packed(packed, None if dtype == "auto" else storage, options, where)
        if path.is_file():
            raise ModelFormatError(f"{path}: expected a model folder or a packed model, got a file")
        folder = read_folder(path)
        files = (str(folder.path.resolve()), folder.state, storage, where)
        return _shared(files, options, lambda: load_folder(folder, storage, where), where)

    @property
    def dimension(self) -> int:
        """Number of elements in a vector."""
        return self._dimension

    def get_sentence_embedding_dimension(self) -> int:
        """Return :attr:`dimension`, by its name in sentence-transformers."""
        return self.dimension

    @property
    def dtype(self) -> DType:
        """Storage type of the weights."""
        return self._dtype

    @property
    def device(self) -> str:
        """Where the model computes: ``"cpu"`` or ``"cuda:N"``."""
        return device_name(self._device)

    @property
    def max_seq_length(self) -> int:
        """Maximum tokens per text, special tokens included; longer texts are cut."""
        return self._folder.max_seq_length

    @property
    def normalizes(self) -> bool:
        """Whether the model itself gives vectors of unit L2 norm."""
        return self._folder.head.normalize

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name; each is a text to put before every input."""
        return dict(self._folder.prompts.texts)

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt used when none is given, or None."""
        return self._folder.prompts.default_name

    @property
    def truncation(self) -> TruncationReport:
        """How many texts were truncated since the model was loaded."""
        return self._truncation.report

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights held in the process's memory; a CUDA device has a copy of them."""
        return self._encoder.weight_bytes

    @property
    def path(self) -> Path:
        """The folder that the model was loaded from."""
        return self._folder.path

    @property
    def space_id(self) -> str:
        """Identity of the vector space; vectors of different spaces must not be compared."""
        if self._dimension == self._folder.dimension:
            return self._space_id
        return narrowed(self._space_id, self._dimension)

    def __repr__(self) -> str:
        return (
            f"EmbeddingModel({self.path.name!r}, dtype={self.dtype!r}, dimension={self.dimension}, "
            f"{self.memory_bytes / 1e6:.1f} MB{'' if self._device == CPU else ', ' + self.device})"
        )

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        normalize_embeddings: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        on_truncate: str | None = None,
        keep_on_device: Literal[False] = False,
    ) -> NDArray[np.float32]: ...
    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        normalize_embeddings: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        on_truncate: str | None = None,
        keep_on_device: Literal[True],
    ) -> DeviceArray: ...
    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        normalize_embeddings: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        on_truncate: str | None = None,
        keep_on_device: bool = False,
    ) -> NDArray[np.float32] | DeviceArray:
        """Embed texts.

        Parameters
        ----------
        texts : one string, or a sequence of them
        batch_size : texts tokenized and computed together; it affects speed only. On a CUDA device
            the batches of several threads are computed together
        show_progress_bar : None shows a bar for large inputs on a terminal only
        normalize_embeddings : scale the vectors to unit L2 norm even if the model itself does not
        prompt_name : which of :attr:`prompts` to put before every text; None is
            :attr:`default_prompt_name`
        prompt : a text to put before every text instead
        truncate_dim : keep only the first elements of the vectors; None is the value the model was
            loaded with
        on_truncate : ``"warn"``, ``"error"`` or ``"ignore"``, see :meth:`load`; None is the value
            the model was loaded with
        keep_on_device : leave the vectors on the model's CUDA device, in a
            :class:`~ai_model_optimizations.DeviceArray`. This is ``convert_to_tensor`` of
            sentence-transformers, for any library that supports DLPack. See docs/gpu.md

        Returns
        -------
        (n, dimension) float32 in the order of the texts, or (dimension,) for one string;
        ``truncate_dim``, if given, takes the place of the model's dimension.

        Raises
        ------
        TypeError
            If ``texts`` is not a sequence of strings, or ``batch_size`` is not an integer.
        ValueError
            If ``batch_size`` is not positive, a text is not valid Unicode, the prompt does not
            exist, ``truncate_dim`` is larger than the model's vectors, a text is too long and
            ``on_truncate`` is ``"error"``, or ``keep_on_device`` is true on a CPU model.
        DeviceError, MemoryError
            If the model's device fails, or runs out of memory.
        """
        folder = self._folder
        columns = self.dimension if truncate_dim is None else truncate_dim
        call = EncodeCall(
            self._encoder,
            self._tokenizer,
            self._truncation,
            self._device,
            normalize=self.normalizes or normalize_embeddings,
            prompt=folder.prompts.resolve(prompt_name, prompt),
            include_prompt=folder.head.include_prompt,
            dimension=check_dimension(columns, folder.dimension),
            on_truncate=self._options.on_truncate
            if on_truncate is None
            else check_policy(on_truncate),
            keep_on_device=keep_on_device,
        )
        if keep_on_device and self._device == CPU:
            raise ValueError("keep_on_device: the model is on the CPU; load it with device='cuda'")
        check_count("batch_size", batch_size)
        if isinstance(texts, str):
            return call.one(texts)
        texts = check_texts(texts)
        return call.many(texts, batch_size, show_progress_bar)

    @overload
    def encode_query(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        *,
        keep_on_device: Literal[False] = False,
        **options: Any,
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_query(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        *,
        keep_on_device: Literal[True],
        **options: Any,
    ) -> DeviceArray: ...
    def encode_query(
        self, texts: str | Sequence[str], batch_size: int = 32, **options: Any
    ) -> NDArray[np.float32] | DeviceArray:
        """Embed queries: :meth:`encode` with the prompt ``"query"``, as sentence-transformers does.

        ``options`` are those of :meth:`encode`; a prompt among them is used instead.
        """
        return self._encode_with("query", texts, batch_size, options)

    @overload
    def encode_document(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        *,
        keep_on_device: Literal[False] = False,
        **options: Any,
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_document(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        *,
        keep_on_device: Literal[True],
        **options: Any,
    ) -> DeviceArray: ...
    def encode_document(
        self, texts: str | Sequence[str], batch_size: int = 32, **options: Any
    ) -> NDArray[np.float32] | DeviceArray:
        """Embed documents: :meth:`encode` with the prompt ``"document"``.

        ``options`` are those of :meth:`encode`; a prompt among them is used instead.
        """
        return self._encode_with("document", texts, batch_size, options)

    def _encode_with(
        self,
        name: str,
        texts: str | Sequence[str],
        batch_size: int,
        options: dict[str, Any],
    ) -> NDArray[np.float32] | DeviceArray:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            options = {**options, "prompt_name": name}
        vectors: NDArray[np.float32] | DeviceArray = self.encode(texts, batch_size, **options)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many tokens of each text the model sees, special tokens included; (n,)."""
        if isinstance(texts, str):
            raise TypeError("texts: expected a sequence of str, got one str; put it into a list")
        return np.diff(self._tokenizer.pack(check_texts(texts)).offsets)

    def astype(self, dtype: str) -> EmbeddingModel:
        """Return this model with its weights stored as ``dtype``; itself when they are already.

        Raises
        ------
        ValueError
            If the weights are rounded already, and another type would lose more by rounding twice
            than by rounding once (f16 to int8 would not). Load the model again instead.
        """
        storage = resolve_dtype(dtype)
        if storage == self._dtype:
            return self
        if self._dtype != "f32" and (self._dtype, storage) != ("f16", "int8"):
            hint = f"use EmbeddingModel.load({str(self.path)!r}, dtype={storage!r})"
            if find_packed(self.path) is not None:
                hint = "load the model that it was packed from with that dtype"
            raise ValueError(f"dtype: the weights are {self._dtype} already; {hint}")
        parts = convert(self._own_parts(), storage, source=self._device, device=self._device)
        return EmbeddingModel(*parts, self._options, self._device)

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
        ValueError
            If ``path`` is empty.
        OSError
            If it cannot be written, as on a full disk; nothing is left then.
        """
        folder = given_path(path, "path")
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

    def __copy__(self) -> EmbeddingModel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingModel:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        from .pickled import from_bytes, to_bytes

        return from_bytes, (to_bytes(self), tuple(self._options), self.device)

    def _parts(self) -> ModelParts:
        """Return what a file keeps of the model."""
        whole = self._dimension == self._folder.dimension
        folder = replace(self._folder, truncate_dim=None if whole else self._dimension)
        return self._own_parts()._replace(folder=folder)

    def _with_options(self, options: Options) -> EmbeddingModel:
        """Return a model with other options and the same weights."""
        if options == self._options:
            return self
        return EmbeddingModel(*self._own_parts(), options, self._device)

    def _own_parts(self) -> ModelParts:
        return ModelParts(self._encoder, self._tokenizer, self._folder, self._dtype, self._space_id)


def _load_packed(file: Path, dtype: DType | None, options: Options, device: int) -> EmbeddingModel:
    """Return the model in a packed file; None takes the dtype that it has."""
    stat = file.stat()
    # A file that was replaced has another inode.
    files = (str(file.resolve()), (stat.st_ino, stat.st_mtime_ns), "packed", device)
    model = _shared(files, options, lambda: read_parts(file, device=device), device)
    if dtype not in (None, model.dtype):
        raise ValueError(
            f"dtype: {file} holds {model.dtype}, not {dtype}; "
            "use dtype='auto', or load the model that it was packed from"
        )
    return model


def _shared(
    files: Hashable, options: Options, read: Callable[[], ModelParts], device: int
) -> EmbeddingModel:
    return in_use(
        files,
        options,
        load=lambda: EmbeddingModel(*read(), device=device),
        with_options=lambda model: model._with_options(options),
    )
