"""Half the memory or less."""

from .model_quantizer import ModelQuantizer

__all__ = ["ModelQuantizer"]
