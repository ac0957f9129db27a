"""Random damage to model folders: each is refused with the package's errors, or it embeds.

    python tests/fuzz/fuzz_model_folder.py --seconds 1800 --seed 7 --keep /tmp/findings

The corpus is made here: small folders of every kind, whose safetensors files, configurations and
tokenizers are then changed, as bytes or as JSON. A finding is any other exception, a crash, or an
input that takes longer than HANG seconds or more memory than MEMORY; its folder is kept, and
`--replay FOLDER` runs it again. After a crash of the process itself the folder is still there.
"""

import argparse
import collections
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "embedding"))

import numpy as np
from model_folders import BertFolder, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ai_model_optimizations import EmbeddingModel, ModelFormatError, UnsupportedError

HANG = 20
MEMORY = 3 << 30
REFUSALS = (ModelFormatError, UnsupportedError)
TEXTS = ["read the file", "", "A Çalışma, 日本! " * 30, "the " * 400]
Files = dict[str, bytes]


class HangError(Exception):
    """An input took too long."""


# --- The corpus -----------------------------------------------------------------------------------


def plain(path: Path) -> None:
    BertFolder(hidden=12, heads=3, intermediate=16, layers=1, positions=24).write(path)


def with_dense(path: Path) -> None:
    plain(path)
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode": ["mean", "max"]})
    dense = {"in_features": 24, "out_features": 6, "bias": True}
    write_json(path / "3_Dense" / "config.json", dense)
    tensors = {"linear.weight": np.ones((6, 24), np.float32), "linear.bias": np.ones(6, np.float16)}
    save_file(tensors, str(path / "3_Dense" / "model.safetensors"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "3_Dense": "Dense", "2_N": "Normalize"}
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds.items()]
    write_json(path / "modules.json", modules)
    prompts = {"prompts": {"query": "read "}, "default_prompt_name": "query", "truncate_dim": 5}
    write_json(path / "config_sentence_transformers.json", prompts)


def sharded(path: Path) -> None:
    plain(path)
    whole = load_file(str(path / "model.safetensors"))
    (path / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, part in parts.items():
        save_file({f"bert.{name}": whole[name] for name in part}, str(path / file))
    weight_map = {f"bert.{name}": file for file, part in parts.items() for name in part}
    write_json(path / "model.safetensors.index.json", {"weight_map": weight_map})


def other_tokenizer(make: Callable[[], Tokenizer]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        plain(path)
        (path / "modules.json").unlink()
        make().save(str(path / "tokenizer.json"))
        write_json(path / "tokenizer_config.json", {"model_max_length": 20})
        write_json(path / "sentence_bert_config.json", {"do_lower_case": True})

    return write


def unigram() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdefghi", "▁the", "▁file", "日"]
    tokenizer = Tokenizer(models.Unigram([(p, -1.0 - len(p) % 3) for p in pieces], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def byte_pairs() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:70]
    merges = [("t", "h"), ("th", "e")]
    tokens = [*dict.fromkeys([*letters, "t", "h", "e"]), "th", "the"]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token=tokens[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A", special_tokens=[("!", tokens.index("!"))]
    )
    return tokenizer


def make_corpus(path: Path) -> list[Files]:
    writers = (plain, with_dense, sharded, other_tokenizer(unigram), other_tokenizer(byte_pairs))
    corpus = []
    for i, write in enumerate(writers):
        folder = path / f"seed{i}"
        write(folder)
        found = sorted(file for file in folder.rglob("*") if file.is_file())
        corpus.append({str(file.relative_to(folder)): file.read_bytes() for file in found})
    return corpus


# --- Damage ---------------------------------------------------------------------------------------

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 12, 255, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64,
    10**30, 0.0, 1e-12, 0.5, 1e308, "", "x", "..", "/", "\0", "a" * 5000, "bert", "F16", "BF16",
    "F64", "I8", "mean", "linear.weight", "config.json", [], [[]], {}, [1, 2], {"a": {}}, "日本",
    "\ud800",
]  # fmt: skip


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        # Headers and the beginnings of files matter most.
        at = min(at, rng.choice((8, 64, 1024, len(data))))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice((0, 255, 10, 34, 44, 58, 91, 93, 123, 125, 48, 57))
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        elif kind == 4:
            del data[at:]
        else:
            data[at:at] = data[at : at + rng.choice((1, 16, 300))]
    return bytes(data)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Change one place somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        change = rng.randrange(12)
        if change == 0:
            return {k: v for k, v in value.items() if k != key}
        if change == 1:
            return value | {str(rng.choice(_VALUES)): value[key]}
        if change == 2:
            return value | {key: value[rng.choice(list(value))]}
        return value | {key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        change = rng.randrange(8)
        if change == 0:
            return value[:at] + value[at + 1 :]
        if change == 1:
            return value[:at] + value[at:] * 2
        return [*value[:at], damage_value(value[at], rng), *value[at + 1 :]]
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 4, -8, value, 1 << 20))
    if isinstance(value, str) and value and rng.random() < 0.3:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "\0", "/", "..", "é", value)) + value[at + 1 :]
    return rng.choice(_VALUES)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = damage_value(value, rng)
    return json.dumps(value, ensure_ascii=True).encode()


def damage_header(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = damage_json(content[8 : 8 + size], rng)
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 8, 1 << 30, 1 << 63))
    return length.to_bytes(8, "little") + header + content[8 + size :]


def damage(files: Files, rng: random.Random) -> Files:
    files = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(files))
        if rng.random() < 0.03:
            del files[name]
            if not files:
                break
            continue
        if rng.random() < 0.4:
            files[name] = damage_bytes(files[name], rng)
            continue
        structured = damage_json if name.endswith(".json") else damage_header
        try:
            files[name] = structured(files[name], rng)
        except (ValueError, RecursionError):  # damaged before
            files[name] = damage_bytes(files[name], rng)
    return files


# --- Running --------------------------------------------------------------------------------------


def write_files(files: Files, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)


def run(path: Path) -> str:
    """Load and use a folder; returns what came of it."""
    signal.alarm(HANG)
    try:
        model = EmbeddingModel.load(path, dtype="f16", on_truncate="ignore")
    except REFUSALS as error:
        if str(path) not in str(error):
            raise AssertionError(f"the message names no file: {error}") from error
        return type(error).__name__
    finally:
        signal.alarm(0)
    signal.alarm(HANG)
    try:
        vectors = model.encode(TEXTS)
    except ModelFormatError:
        return "tokenizer fails on texts"
    except ValueError as error:
        if "the tokenizer gives no token" not in str(error):
            raise
        return "no token"
    finally:
        signal.alarm(0)
    assert vectors.shape == (len(TEXTS), model.dimension)
    return "embeds"


def report_hang(_number: int, _frame: FrameType | None) -> None:
    raise HangError(f"longer than {HANG} s")


def fuzz(seconds: float, seed: int, keep: Path) -> int:
    """Return how many findings there were."""
    rng = random.Random(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    findings = 0
    with tempfile.TemporaryDirectory() as temporary:
        corpus = make_corpus(Path(temporary))
        for i in range(len(corpus)):
            assert run(Path(temporary) / f"seed{i}") == "embeds"
        end = time.monotonic() + seconds
        while time.monotonic() < end and findings < 20:
            write_files(damage(rng.choice(corpus), rng), keep / "running")
            try:
                outcomes[run(keep / "running")] += 1
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                findings += 1
                shutil.copytree(keep / "running", keep / f"finding{findings}")
                traceback.print_exc()
    shutil.rmtree(keep / "running", ignore_errors=True)
    print(f"seed {seed}, {sum(outcomes.values())} folders in {seconds:.0f} s: {dict(outcomes)}")
    print(f"{findings} findings" + (f", kept in {keep}" if findings else ""))
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage model folders and load them.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where findings go; a new folder by default")
    parser.add_argument("--replay", type=Path, help="load this folder only")
    options = parser.parse_args()
    faulthandler.enable()
    os.environ["AIMO_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, report_hang)
    if options.replay:
        print(run(options.replay))
        return 0
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    return 1 if fuzz(options.seconds, options.seed, keep) else 0


if __name__ == "__main__":
    sys.exit(main())
