"""Which inputs of int8 layers stay in 16 bits.

A few channels of a transformer's activations are tens of times larger than the others, whatever the
input: with a single scale per row, the others would have only two or three steps (Dettmers et al.,
LLM.int8(), 2022). These channels are found once, when a model is packed, so that a row's result
never depends on other rows. embedding/outliers.py does the same for the C encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .torch_modules import as_f32, pieces
from .torch_plan import Weight

#: What a matrix keeps in 16 bits.
_CHANNELS = 16
_LENGTHS = (4, 16, 64, 128)
_SEQUENCES = 8  # of each length


def find_channels(
    model: torch.nn.Module, weights: Sequence[Weight], sample: Any
) -> tuple[str, ...]:
    """Set :attr:`Weight.channels` of the int8 matrices.

    These are the inputs with the largest values in one call of the model, with ``sample`` or, for
    transformers models, with random words. For a layer that the call does not reach, or if there is
    no call, they are the inputs with the largest weights.

    Parameters
    ----------
    sample : see ``ModelQuantizer.quantize_model``

    Returns
    -------
    Notes for the report.
    """
    matrices = [weight for weight in weights if weight.dtype == "int8" and not weight.is_table]
    if not matrices:
        return ()
    peaks: dict[str, NDArray[np.float32]] = {}
    call = _call_of(model, sample)
    problem = "none was given"
    if call is not None:
        try:
            peaks = _watch(model, matrices, call)
        except Exception as error:
            if sample is not None:
                raise
            problem = f"random words are no input of it ({type(error).__name__}: {error})"
    for weight in matrices:
        # Zero everywhere: the layer was not reached, or its inputs say nothing.
        seen = peaks.get(weight.name)
        if seen is None or not seen.any():
            seen = _weight_peaks(weight)
        weight.channels = _largest(seen)
    if peaks:
        return ()
    return (
        f"No call of the model showed its inputs: {problem}. The channels that stay in 16 bits "
        "are those with the largest weights; sample= finds better ones.",
    )


def _call_of(model: torch.nn.Module, sample: Any) -> Callable[[], object] | None:
    if sample is None:
        return _random_words(model)
    if isinstance(sample, dict):
        return lambda: model(**sample)
    if isinstance(sample, tuple):
        return lambda: model(*sample)
    if callable(sample) and not isinstance(sample, torch.Tensor):
        return lambda: sample(model)
    return lambda: model(sample)


def _random_words(model: Any) -> Callable[[], object] | None:
    """For a transformers model that takes token ids: sequences of several lengths."""
    config = getattr(model, "config", None)
    words = getattr(config, "vocab_size", None)
    if getattr(model, "main_input_name", None) != "input_ids" or not isinstance(words, int):
        return None
    longest = getattr(config, "max_position_embeddings", None) or max(_LENGTHS)
    random = torch.Generator().manual_seed(0)

    def call() -> None:
        for length in sorted({min(length, longest // 2 + 1) for length in _LENGTHS}):
            model(torch.randint(words, (_SEQUENCES, length), generator=random))

    return call


def _watch(
    model: torch.nn.Module, weights: Sequence[Weight], call: Callable[[], object]
) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of each input channel of each layer during the call."""
    peaks: dict[str, NDArray[np.float32]] = {}
    handles = []
    for weight in weights:
        seen = peaks[weight.name] = np.zeros(weight.shape[1], np.float32)

        def watch(module: Any, args: Any, kwargs: Any, seen: NDArray[np.float32] = seen) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            values = as_f32(x.detach().abs().reshape(-1, len(seen)))
            np.maximum(seen, values.max(axis=0, initial=0.0), out=seen)

        handles += [
            module.register_forward_pre_hook(watch, with_kwargs=True)
            for module, kind in zip(weight.modules, weight.kinds, strict=True)
            if kind != "embedding"
        ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            call()
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return peaks


def _weight_peaks(weight: Weight) -> NDArray[np.float32]:
    source = weight.parameter.detach()
    if weight.kinds[0] == "conv1d":
        source = source.t()
    peaks = np.zeros(weight.shape[1], np.float32)
    for first, count in pieces(*weight.shape):
        np.maximum(peaks, np.abs(as_f32(source[first : first + count])).max(axis=0), out=peaks)
    return peaks


def _largest(peaks: NDArray[np.float32]) -> NDArray[np.int32]:
    channels = np.argsort(peaks, kind="stable")[-_CHANNELS:]
    return np.sort(channels).astype(np.int32)
