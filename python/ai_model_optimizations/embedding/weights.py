"""Loads a model folder's tensors into the core's encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from .. import _core
from ..devices import CPU
from ..errors import ModelFormatError
from .folder import ModelFolder
from .modules import Dense
from .outliers import Outliers, set_outliers
from .tensors import TensorFile


def new_encoder(folder: ModelFolder, dtype: str) -> _core.Encoder:
    """Return an encoder for the folder's model, without weights."""
    sizes: dict[str, Any] = dict(folder.architecture.sizes)
    head = folder.head
    dense = [(layer.inputs, layer.outputs, layer.activation) for layer in head.dense]
    return _core.Encoder(dtype=dtype, poolings=head.poolings, dense=dense, **sizes)


def load_encoder(folder: ModelFolder, dtype: str, device: int = CPU) -> _core.Encoder:
    """Return an encoder with the folder's weights, stored as ``dtype``, on a device.

    Raises
    ------
    ModelFormatError
        If a tensor is missing, has no place in the encoder, differs in shape from config.json, or
        holds a value that is not finite or does not fit ``dtype``; the message names it.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in folder.weights]
        dense_files = [stack.enter_context(TensorFile(d.weights)) for d in folder.head.dense]
        names = TensorNames(folder, files)
        # Sizes first: what config.json claims is allocated at once.
        names.check_sizes()
        for layer, file in zip(folder.head.dense, dense_files, strict=True):
            _check_dense(layer, file)
        try:
            encoder = new_encoder(folder, dtype)
        except ValueError as error:
            raise ModelFormatError(f"{folder.transformer / 'config.json'}: {error}") from None
        names.fill(encoder)
        for index, (layer, file) in enumerate(zip(folder.head.dense, dense_files, strict=True)):
            _fill_dense(encoder, index, layer, file)
    try:
        encoder.seal(device)
    except ModelFormatError as error:
        raise ModelFormatError(f"{folder.weights[0]}: {error}") from None
    return encoder


def copy_encoder(
    folder: ModelFolder,
    encoder: _core.Encoder,
    dtype: str,
    device: int = CPU,
    outliers: Outliers | None = None,
) -> _core.Encoder:
    """Return an encoder with the weights of another, stored as ``dtype``; outliers are for int8."""
    copy = new_encoder(folder, dtype)
    if outliers is not None:
        set_outliers(copy, outliers)
    for name, layer, _ in tensor_places(folder):
        copy.set_tensor(name, layer, encoder.tensor(name, layer))
    copy.seal(device)
    return copy


def tensor_places(folder: ModelFolder) -> Iterator[tuple[str, int, bool]]:
    """Yield each tensor of the model: the core's name, the layer, and whether layers have it."""
    for name, per_layer in _core.encoder_tensor_names():
        if name.startswith("dense_") and int(name[6]) >= len(folder.head.dense):
            continue
        for layer in range(folder.architecture.layers if per_layer else 1):
            yield name, layer, per_layer


def family_places(folder: ModelFolder) -> dict[str, tuple[str, int]]:
    """Return the core's name and layer for each of the family's names, except dense layers."""
    architecture = folder.architecture
    return {
        name.format(layer=layer): (ours, layer)
        for name, ours in architecture.family.tensors.items()
        for layer in range(architecture.layers if "{layer}" in name else 1)
    }


class TensorNames:
    """Which file has which tensor, and what precedes the family's names for them."""

    def __init__(self, folder: ModelFolder, files: list[TensorFile]) -> None:
        self._folder = folder
        self._family = folder.architecture.family
        self._files: dict[str, TensorFile] = {}
        for file in files:
            for name in file:
                if name in self._files:
                    raise ModelFormatError(
                        f"{file.path}: tensor {name!r} stands in {self._files[name].path.name} too"
                    )
                self._files[name] = file
        for name, shard in folder.shards.items():
            if name not in self._files or self._files[name].path != shard:
                raise ModelFormatError(f"{shard}: tensor {name!r} is missing")
        self._prefix = self._find_prefix(folder)

    def _find_prefix(self, folder: ModelFolder) -> str:
        anchor = self._family.anchor
        prefixes = [
            name[: -len(anchor)]
            for name in self._files
            if name == anchor or name.endswith(f".{anchor}")
        ]
        if len(prefixes) != 1:
            found = "no tensor" if not prefixes else f"{len(prefixes)} tensors"
            raise ModelFormatError(
                f"{folder.weights[0]}: {found} called {anchor!r}, expected one, "
                "perhaps with a prefix"
            )
        return prefixes[0]

    def check_sizes(self) -> None:
        """Compare the sizes of config.json with the shapes of some tensors."""
        sizes = self._folder.architecture.sizes
        for template, extents in self._family.shapes.items():
            for layer in {0, int(sizes["layers"]) - 1}:
                name = self._prefix + template.format(layer=layer)
                if name not in self._files:
                    raise ModelFormatError(
                        f"{self._folder.weights[0]}: missing tensor {name!r}; "
                        "does config.json belong to these weights?"
                    )
                expected = tuple(int(sizes[extent]) for extent in extents)
                self._files[name].check_shape(name, expected)

    def __iter__(self) -> Iterator[tuple[str, TensorFile, str]]:
        """Yield the family's name, the file and the name in it of each tensor that is used."""
        for full_name, file in self._files.items():
            name = self._family_name(full_name)
            if not name.startswith(self._family.ignored):
                yield name, file, full_name

    def fill(self, encoder: _core.Encoder) -> None:
        """Give every tensor to the encoder; refuse those that it has no place for."""
        places = family_places(self._folder)
        for name, file, full_name in self:
            if name not in places:
                raise ModelFormatError(
                    f"{file.path}: tensor {full_name!r} has no place in this model; "
                    "does config.json belong to these weights?"
                )
            ours, layer = places[name]
            _set(encoder, ours, layer, file, full_name)

    def _family_name(self, full_name: str) -> str:
        name = full_name
        if name.startswith(self._prefix):
            name = name[len(self._prefix) :]
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        )


def _set(encoder: _core.Encoder, ours: str, layer: int, file: TensorFile, name: str) -> None:
    try:
        encoder.set_tensor(ours, layer, file.read(name))
    except ModelFormatError as error:
        hint = "; load with dtype='bf16' or 'f32'" if "does not fit f16" in str(error) else ""
        raise ModelFormatError(f"{file.path}: tensor {name!r}: {error}{hint}") from None
    except ValueError as error:
        raise ModelFormatError(f"{file.path}: tensor {name!r}: {error}") from None


def _check_dense(layer: Dense, file: TensorFile) -> None:
    expected: dict[str, tuple[int, ...]] = {"linear.weight": (layer.outputs, layer.inputs)}
    if layer.bias:
        expected["linear.bias"] = (layer.outputs,)
    if set(file) != set(expected):
        raise ModelFormatError(
            f"{file.path}: expected the tensors {sorted(expected)}, got {sorted(file)}"
        )
    for name, shape in expected.items():
        file.check_shape(name, shape)


def _fill_dense(encoder: _core.Encoder, index: int, layer: Dense, file: TensorFile) -> None:
    _set(encoder, f"dense_{index}.weight", 0, file, "linear.weight")
    if layer.bias:
        _set(encoder, f"dense_{index}.bias", 0, file, "linear.bias")
    else:
        encoder.set_tensor(f"dense_{index}.bias", 0, np.zeros(layer.outputs, dtype=np.float32))
