"""What comes after the transformer: pooling, dense layers, normalising; from modules.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelFormatError, UnsupportedError
from .json_files import positive_integer, read_any, read_json, read_json_if_there

#: ``pooling_mode_*`` keys of sentence-transformers in the order in which it concatenates them, and
#: the core's names.
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}
#: Values of ``pooling_mode``, the newer key.
_POOLING_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
_POOLINGS_MOST, _DENSE_MOST = 6, 4

#: Activation classes of torch, by the core's name.
_ACTIVATIONS = {
    "Identity": "none",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}


@dataclass(frozen=True)
class Dense:
    """A linear layer on the pooled vector."""

    weights: Path
    inputs: int
    outputs: int
    activation: str
    bias: bool


@dataclass(frozen=True)
class Head:
    """Everything that happens to the token vectors."""

    #: Names of the core; several are concatenated.
    poolings: tuple[str, ...] = ("mean",)
    #: Whether pooling sees the tokens of the prompt.
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalize: bool = False

    def dimension(self, hidden: int) -> int:
        """Elements of a vector, for token vectors of ``hidden`` elements."""
        return self.dense[-1].outputs if self.dense else len(self.poolings) * hidden


def transformer_folder(path: Path) -> Path:
    """Return where config.json is: the folder itself, or the one that modules.json names."""
    if not (path / "modules.json").is_file():
        return path
    return _subfolder(path, _modules(path)[0])


def read_head(path: Path, hidden: int) -> Head:
    """Read modules.json and the modules' own configurations.

    A folder without modules.json, as transformers writes it, is treated as sentence-transformers
    does: mean pooling, not normalised.

    Raises
    ------
    ModelFormatError
        If a file is missing or contradicts another; the message names it.
    UnsupportedError
        If the encoder does not know a module.
    """
    if not (path / "modules.json").is_file():
        return Head()
    modules = _modules(path)
    pooling = _subfolder(path, modules[1]) / "config.json"
    poolings, include_prompt = _read_pooling(pooling, hidden)
    dense: list[Dense] = []
    width = len(poolings) * hidden
    for module in modules[2:]:
        if _kind(module) == "Dense":
            dense.append(_read_dense(_subfolder(path, module), width))
            width = dense[-1].outputs
        elif _kind(module) == "Normalize":
            _refuse_other_features(_subfolder(path, module) / "config.json")
    if len(dense) > _DENSE_MOST:
        raise UnsupportedError(
            f"{path / 'modules.json'}: {len(dense)} Dense modules, at most {_DENSE_MOST} are known"
        )
    normalize = _kind(modules[-1]) == "Normalize"
    return Head(poolings, include_prompt, tuple(dense), normalize)


def _modules(path: Path) -> list[Mapping[str, Any]]:
    """Return the list in modules.json, after checking that the encoder can run that order."""
    file = path / "modules.json"
    modules = read_any(file)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ModelFormatError(f"{file}: expected a list of objects")
    kinds = [_kind(module) for module in modules]
    after = kinds[2:]
    while after and after[-1] == "Normalize":
        after = after[:-1]
    # Dropout does nothing outside training.
    if kinds[:2] != ["Transformer", "Pooling"] or set(after) - {"Dense", "Dropout"}:
        raise UnsupportedError(
            f"{file}: modules {kinds} are not supported, expected Transformer, Pooling, "
            "then perhaps Dense and last perhaps Normalize"
        )
    return modules


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _subfolder(path: Path, module: Mapping[str, Any]) -> Path:
    name = module.get("path", "")
    # The operating system refuses longer names.
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or name.startswith("/")
        or ".." in name
        or len(name.encode()) > 200
    ):
        raise ModelFormatError(
            f"{path / 'modules.json'}: path must name a folder inside the model's, "
            f"got {str(name)[:200]!r}"
        )
    return path / name


def _read_pooling(file: Path, hidden: int) -> tuple[tuple[str, ...], bool]:
    config = read_json(file)
    dimension = config.get("word_embedding_dimension", config.get("embedding_dimension", hidden))
    if dimension != hidden:
        raise ModelFormatError(
            f"{file}: word_embedding_dimension is {dimension}, but hidden_size is {hidden}"
        )
    modes = config.get("pooling_mode")
    if modes is None:
        chosen = [ours for key, ours in _POOLING_KEYS.items() if config.get(key)] or ["mean"]
    else:
        chosen = [_pooling(mode, file) for mode in _as_list(modes)]
    if not 1 <= len(chosen) <= _POOLINGS_MOST:
        raise UnsupportedError(
            f"{file}: expected 1 to {_POOLINGS_MOST} pooling modes, got {len(chosen)}"
        )
    return tuple(chosen), config.get("include_prompt", True) is not False


def _as_list(modes: object) -> Sequence[object]:
    return modes if isinstance(modes, list) else [modes]


def _pooling(mode: object, file: Path) -> str:
    name = _POOLING_NAMES.get(mode) if isinstance(mode, str) else None
    if name is None:
        raise UnsupportedError(
            f"{file}: pooling mode {mode!r} is not known, only {', '.join(_POOLING_NAMES)}"
        )
    return name


def _read_dense(folder: Path, width: int) -> Dense:
    file = folder / "config.json"
    config = read_json(file)
    _refuse_other_features(file)
    if config.get("use_residual"):
        raise UnsupportedError(f"{file}: use_residual is not supported")
    inputs = positive_integer(config, "in_features", file)
    if inputs != width:
        raise ModelFormatError(
            f"{file}: in_features is {inputs}, but the vectors before it have {width} elements"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelFormatError(f"{weights}: the file is missing{conversion_hint(folder)}")
    return Dense(
        weights=weights,
        inputs=inputs,
        outputs=positive_integer(config, "out_features", file),
        activation=_activation(config, file),
        bias=config.get("bias", True) is not False,
    )


def _activation(config: Mapping[str, Any], file: Path) -> str:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    theirs = name.rsplit(".", 1)[-1] if isinstance(name, str) else ""
    if theirs not in _ACTIVATIONS or not name.startswith("torch.nn."):
        raise UnsupportedError(
            f"{file}: activation_function {name!r} is not supported, "
            f"only {', '.join(_ACTIVATIONS)} of torch.nn"
        )
    return _ACTIVATIONS[theirs]


def _refuse_other_features(file: Path) -> None:
    """Refuse modules whose configuration makes them work on anything but the sentence's vector."""
    config = read_json_if_there(file)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in (None, "sentence_embedding"):
            raise UnsupportedError(f"{file}: {key} = {config[key]!r} is not supported")


def conversion_hint(folder: Path) -> str:
    """Say what to do when a folder has weights in a format that is not supported."""
    if any(folder.glob("pytorch_model*.bin*")):
        return (
            "; pytorch_model.bin is a pickle, which can run code, and is not read: load the model "
            "with sentence-transformers or transformers once and save it again with "
            "save_pretrained(path), which writes safetensors (docs/models.md)"
        )
    return ""
