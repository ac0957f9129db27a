"""Quantization: models in half the memory or less."""

from .model_quantizer import ModelQuantizer
from .report import CosineReport, QuantizationReport, TensorReport

__all__ = ["CosineReport", "ModelQuantizer", "QuantizationReport", "TensorReport"]
