"""A SentenceTransformer whose forward pass runs in the C encoder.

The tokenizer, pooling and every setting remain sentence-transformers' own objects; only the
transformers model inside is replaced. ``encode`` of texts does not use torch at all; anything
unusual (token embeddings, hooks, other modules) runs through sentence-transformers' own code and
the replaced module, and gives the same vectors.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import truncate_embeddings

from ..embedding import EmbeddingModel
from ..embedding.packed_file import find_packed
from ..embedding.pickled import from_bytes, to_bytes
from ..embedding.space import narrowed
from ..errors import UnsupportedError
from .sentence_transformer_parts import with_max_seq_length

_log = logging.getLogger("sentence_transformers")
_MOVED = (
    "a quantized SentenceTransformer computes on the CPU and cannot be moved to {}; "
    "ModelQuantizer.dequantize(model) gives a plain one, which can"
)


class CoreEncoder(torch.nn.Module):  # type: ignore[misc]
    """Replaces the transformers model: token ids in, last hidden states out.

    Parameters
    ----------
    model : the packed model
    config : of the transformers model that it replaces
    model_class : that model's class, to make a plain one again
    """

    main_input_name = "input_ids"

    def __init__(self, model: EmbeddingModel, config: Any, model_class: type) -> None:
        super().__init__()
        self.embedding_model, self.config, self.model_class = model, config, model_class
        #: The packed file that pickles name instead of holding the weights.
        self.file: Path | None = None
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of inputs and results; the weights' own is ``embedding_model.dtype``."""
        return torch.float32

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """Return the last hidden states, (batch, length, hidden); zeros where the mask is zero."""
        from transformers.modeling_outputs import BaseModelOutput

        if self.training:
            raise UnsupportedError("packed weights cannot be trained: call model.eval()")
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if asked or input_ids is None:
            raise UnsupportedError(f"the C encoder takes token ids alone, not {asked}")
        if token_type_ids is not None and bool(token_type_ids.any()):
            raise UnsupportedError("the C encoder knows one token type: pairs of texts are not run")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        kept = mask.to(torch.bool)
        lengths = kept.sum(dim=1)
        if not torch.equal(kept, torch.arange(kept.shape[1]) < lengths[:, None]):
            raise UnsupportedError(
                "attention_mask: expected ones, then zeros (padding on the right)"
            )
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths.numpy(), out=offsets[1:])
        ids = input_ids[kept].to(torch.int32).numpy()
        vectors = self.embedding_model._encoder.encode_tokens(ids, offsets)
        hidden = torch.zeros((*kept.shape, vectors.shape[1]))
        hidden[kept] = torch.from_numpy(vectors)
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "embedding_model": to_bytes(self.embedding_model, self.file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "embedding_model": from_bytes(state["embedding_model"])})

    def __deepcopy__(self, memo: dict[int, Any]) -> CoreEncoder:
        # The packed weights are immutable: copies share them.
        copy = CoreEncoder(self.embedding_model, self.config, self.model_class)
        memo[id(self)] = copy
        return copy

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        device = fn(torch.empty(0)).device
        if device.type != "cpu":
            raise UnsupportedError(_MOVED.format(device))
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Describe the module in its repr."""
        return repr(self.embedding_model)


class QuantizedSentenceTransformer(SentenceTransformer):  # type: ignore[misc]
    """A SentenceTransformer in half the memory; ``ModelQuantizer`` makes it from a plain one.

    Everything that a SentenceTransformer does works. ``half()``, ``to("cpu")``, ``cpu()`` and
    ``eval()`` return the model and change nothing; moving it to an accelerator raises
    :class:`~ai_model_optimizations.UnsupportedError`, and so does computing in training mode.
    """

    @property
    def embedding_model(self) -> EmbeddingModel:
        """The packed model; :meth:`EmbeddingModel.encode` gives the same vectors."""
        model: EmbeddingModel = core_of(self).embedding_model
        return model

    @property
    def space_id(self) -> str:
        """The vector space, that of `embedding_model`, shortened where ``truncate_dim`` is."""
        space, dimension = self.embedding_model.space_id, getattr(self, "truncate_dim", None)
        if dimension is None or dimension >= self.embedding_model.dimension:
            return space
        return narrowed(space, dimension)

    def get_sentence_embedding_dimension(self) -> int | None:
        """Return the length of the vectors."""
        newer = getattr(super(), "get_embedding_dimension", None)
        if newer is None:
            newer = super().get_sentence_embedding_dimension
        dimension: int | None = newer()
        return dimension

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write the packed model into a folder that ``EmbeddingModel.load`` reads.

        The arguments after ``path`` are sentence-transformers' own and have no meaning here.
        """
        self.embedding_model.save(path)

    save_pretrained = save

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """Start processes that share the packed weights: each maps the same file."""
        core, folder = core_of(self), _Folder()
        if find_packed(core.embedding_model.path) is None:
            core.file = core.embedding_model.save(folder.path)
        try:
            pool: dict[str, Any] = super().start_multi_process_pool(target_devices)
        finally:
            core.file = None
        pool["packed"] = folder  # as long as the pool
        return pool

    def _takes_short_way(self, inputs: Any, prompt: str | None, others: dict[str, Any]) -> bool:
        """Whether the packed model alone can compute the vectors of these inputs."""
        modules = list(self.modules())
        return (
            set(others) <= {"task"}
            and all(type(text) is str for text in inputs)
            and tuple(type(module).__name__ for module in modules[1:]) == self._short_way_modules
            and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
            and not (prompt and any(not getattr(m, "include_prompt", True) for m in modules))
            and not self.training
        )

    def _short_way(
        self,
        inputs: list[str],
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        device: Any,
        truncate_dim: int | None,
        normalize: bool,
    ) -> torch.Tensor:
        if device is not None and torch.device(device).type != "cpu":
            raise UnsupportedError(_MOVED.format(device))
        texts = [prompt + text for text in inputs] if prompt else inputs
        packed = self._model_at_length()
        # The prompt stands before the texts already, and what is cut off is cut off below.
        vectors = torch.from_numpy(
            packed.encode(
                texts,
                batch_size,
                show_progress_bar,
                prompt="",
                truncate_dim=packed._folder.dimension,
                on_truncate="ignore",
            )
        )
        if truncate_dim is not None:
            vectors = truncate_embeddings(vectors, truncate_dim)
        return torch.nn.functional.normalize(vectors, p=2, dim=1) if normalize else vectors

    def _model_at_length(self) -> EmbeddingModel:
        """The packed model, cutting texts at this object's ``max_seq_length``."""
        limit, packed = self.max_seq_length, self.embedding_model
        if limit is None or limit == packed.max_seq_length:
            return packed
        made = self.__dict__.get("_at_length")
        if made is None or made[0] != limit:
            made = limit, with_max_seq_length(packed, limit, self.tokenizer)
            self.__dict__["_at_length"] = made
        model: EmbeddingModel = made[1]
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_at_length"}

    if hasattr(SentenceTransformer, "_inference"):  # from 6 on

        def _inference(
            self,
            inputs: list[Any],
            *,
            prompt: str | None,
            batch_size: int,
            show_progress_bar: bool,
            output_value: str | None,
            normalize_embeddings: bool,
            truncate_dim: int | None,
            device: Any = None,
            **others: Any,
        ) -> Any:
            save_to_cpu = others.pop("save_to_cpu", True)
            if output_value == "sentence_embedding" and self._takes_short_way(
                inputs, prompt, others
            ):
                return self._short_way(
                    inputs, prompt, batch_size, show_progress_bar, device, truncate_dim,
                    normalize_embeddings,
                )  # fmt: skip
            return super()._inference(
                inputs,
                prompt=prompt,
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                output_value=output_value,
                save_to_cpu=save_to_cpu,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                device=device,
                **others,
            )

    else:

        def encode(
            self,
            inputs: Any = None,
            prompt_name: str | None = None,
            prompt: str | None = None,
            batch_size: int = 32,
            show_progress_bar: bool | None = None,
            output_value: str | None = "sentence_embedding",
            precision: str = "float32",
            convert_to_numpy: bool = True,
            convert_to_tensor: bool = False,
            device: Any = None,
            normalize_embeddings: bool = False,
            truncate_dim: int | None = None,
            pool: Any = None,
            chunk_size: int | None = None,
            **others: Any,
        ) -> Any:
            """Embed texts; see ``SentenceTransformer.encode``."""
            if "sentences" in others:  # its name before 5.4
                inputs = others.pop("sentences")
            single = isinstance(inputs, str)
            texts = [inputs] if single else inputs
            plain = prompt
            if plain is None and (prompt_name or self.default_prompt_name):
                plain = self.prompts.get(prompt_name or self.default_prompt_name)
            short = (
                output_value == "sentence_embedding"
                and pool is None
                and not isinstance(device, list)
                and precision in (None, "float32", "int8", "uint8", "binary", "ubinary")
                and (prompt is not None or prompt_name is None or prompt_name in self.prompts)
                and not (prompt is not None and prompt_name is not None)
                and isinstance(texts, (list, tuple, np.ndarray))
                and len(texts) > 0
                and self._takes_short_way(texts, plain, others)
            )
            if not short:
                return super().encode(
                    inputs, prompt_name, prompt, batch_size, show_progress_bar, output_value,
                    precision, convert_to_numpy, convert_to_tensor, device, normalize_embeddings,
                    truncate_dim, pool, chunk_size, **others,
                )  # fmt: skip
            if show_progress_bar is None:
                show_progress_bar = _log.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
            dim = truncate_dim if truncate_dim is not None else self.truncate_dim
            vectors: Any = self._short_way(
                list(texts), plain, batch_size, show_progress_bar, device, dim, normalize_embeddings
            )
            return _as_asked(vectors, precision, convert_to_numpy, convert_to_tensor, single)


class _Folder:
    """A temporary folder that goes with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="aimo-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _as_asked(
    vectors: torch.Tensor, precision: str, to_numpy: bool, to_tensor: bool, single: bool
) -> Any:
    """Give sentence-transformers 5's result types: numpy, one tensor, or a list of tensors."""
    result: Any = vectors
    if precision and precision != "float32":
        from sentence_transformers.quantization import quantize_embeddings

        result = quantize_embeddings(vectors.numpy(), precision=precision)
    if to_tensor:
        result = torch.as_tensor(result)
    elif to_numpy:
        result = np.asarray(result)
    else:
        result = list(torch.as_tensor(result))
    return result[0] if single else result


def core_of(model: torch.nn.Module) -> CoreEncoder:
    """Return the C encoder inside a quantized SentenceTransformer."""
    for module in model.modules():
        if isinstance(module, CoreEncoder):
            return module
    raise UnsupportedError("the model's C encoder was taken out of it")
