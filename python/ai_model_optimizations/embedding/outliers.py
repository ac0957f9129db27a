"""Input channels that int8 weights must not share a scale with.

A few channels of a transformer's activations are tens of times larger than the rest, whatever the
text: rounding a row to 255 steps of its range would leave the others a handful of steps.
They show on any input, so random words find them, once, when a model is packed. The choice is part
of the model and never depends on the texts that are embedded later. Outlier channels of this kind:
Dettmers et al., LLM.int8(), 2022.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core

#: The channels, for each layer and each of its inputs.
Outliers = list[list[NDArray[np.int32]]]

# The weights whose matrices share each input, in the order of Encoder.input_peaks.
_MATRICES = ("query.weight", "attention_output.weight", "up.weight", "down.weight")
_CHANNELS = 8  # at most, because each takes 1% of a product
_STANDS_OUT = 2.0  # times the largest other channel; smaller ones do not affect the cosines
_LENGTHS = (4, 16, 64, 128)
_SEQUENCES = 8  # of each length


def find_outliers(
    encoder: _core.Encoder, vocabulary: int, frame: NDArray[np.int32]
) -> Outliers:
    """Return the input channels whose peaks over sequences of random words stand out.

    Parameters
    ----------
    encoder : sealed, with f32 or 16-bit weights
    vocabulary : number of words in its vocabulary
    frame : (m,) int32, the tokens of an empty text; words are inserted before the last one

    Returns
    -------
    For each layer, and in it for the inputs of query, attention output, up and down: at most 8
    channels, int32, rising
    """
    random = np.random.default_rng(0)
    longest = max(encoder.max_length - len(frame), 1)
    lengths = [min(length, longest) for length in _LENGTHS * _SEQUENCES]
    last = max(len(frame) - 1, 0)
    sequences = [
        np.insert(frame, last, random.integers(0, vocabulary, length, dtype=np.int32))
        for length in lengths
    ]
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    peaks = encoder.input_peaks(np.concatenate(sequences), offsets)
    return [[_outstanding(matrix) for matrix in layer] for layer in peaks]


def _outstanding(peaks: NDArray[np.float32]) -> NDArray[np.int32]:
    order = np.argsort(peaks)
    others = peaks[order[:-_CHANNELS]].max(initial=0.0)
    channels = order[-_CHANNELS:]
    return np.sort(channels[peaks[channels] > _STANDS_OUT * others]).astype(np.int32)


def set_outliers(encoder: _core.Encoder, outliers: Outliers) -> None:
    """Tell an int8 encoder, before its tensors are set, which channels stay in 16 bits."""
    for layer, matrices in enumerate(outliers):
        for name, channels in zip(_MATRICES, matrices, strict=True):
            encoder.set_outliers(name, layer, channels)
