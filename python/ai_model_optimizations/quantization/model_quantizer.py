"""ModelQuantizer: a model in, the same model in half the memory out."""

from __future__ import annotations

from ..embedding import EmbeddingModel
from ..embedding.model import resolve_dtype
from ..errors import UnsupportedError


class ModelQuantizer:
    """Stores a model's weights in 16 bits.

    Parameters
    ----------
    dtype : ``"f16"``, ``"bf16"``, or ``"auto"`` for the machine's fastest 16-bit type
    """

    def __init__(self, dtype: str = "auto") -> None:
        self._dtype = resolve_dtype(dtype)
        if self._dtype == "f32":
            raise ValueError("dtype: expected a 16-bit type, got 'f32'")

    def quantize_model(self, model: EmbeddingModel) -> EmbeddingModel:
        """Return the model with 16-bit weights; the given one is left as it is.

        A model that is stored in this type already is returned unchanged.

        Raises
        ------
        UnsupportedError
            If ``model`` is no :class:`EmbeddingModel`.
        ValueError
            If it is stored in another 16-bit type already.
        """
        if not isinstance(model, EmbeddingModel):
            raise UnsupportedError(
                f"model: expected an EmbeddingModel, got {type(model).__name__}; "
                "load it with EmbeddingModel.load(path)"
            )
        return model.astype(self._dtype)
