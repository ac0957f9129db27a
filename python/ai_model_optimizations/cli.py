"""The command ``ai-model-optimizations``; ``info`` says what this machine has and what is used."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence

from . import _core
from ._version import __version__
from .demo import add_command as add_demo
from .devices import describe_cuda
from .embedding.lookup import DEFAULT_MODEL, find_model, hub_cache
from .embedding.tune import add_command as add_tune
from .errors import AimoError
from .memory_monitor.command import add_command as add_memory
from .memory_monitor.doctor import add_command as add_doctor
from .quantization.command import add_command as add_quantize
from .report import add_command as add_report
from .selftest import add_command as add_selftest

#: Every environment variable that the package reads, and its effect.
VARIABLES: Mapping[str, str] = {
    "AIMO_CACHE_DIR": "folder that keeps packed models, which later processes map",
    "AIMO_CONFIG": "settings that tune wrote, for BatchEmbeddingProcessor.from_config()",
    "AIMO_CPU": "row of kernels: scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx or neon",
    "AIMO_DISABLE": "comma-separated parts to turn off: batch, cache, guard, hook",
    "AIMO_NUM_THREADS": "threads of the pool",
    "TOKENIZERS_PARALLELISM": "threads of the tokenizers library; loading sets false if unset",
    "MEMORY_THRESHOLD_MB": "the memory monitor's threshold",
}

#: Optional packages, and what each adds.
EXTRAS: Mapping[str, str] = {
    "huggingface_hub": "downloads models that are not local",
    "tqdm": "progress bars",
    "torch": "torch models",
    "sentence_transformers": "comparison in demo and report",
    "prometheus_client": "metrics for Prometheus",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="ai-model-optimizations",
        description="Small, fast sentence embeddings and safe memory monitoring.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what is installed and what this machine has")
    info.set_defaults(run=run_info)
    add_demo(commands)
    add_tune(commands)
    add_quantize(commands)
    add_memory(commands)
    add_doctor(commands)
    add_report(commands)
    add_selftest(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        print(end="", flush=True)
    except BrokenPipeError:
        # The reader, such as head, has closed the pipe. Python flushes again at exit: to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("ai-model-optimizations: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (AimoError, OSError, ValueError) as error:
        print(f"ai-model-optimizations: {error}", file=sys.stderr)
        return 1
    return status


def run_info(_options: argparse.Namespace) -> int:
    """Print version, row, threads, model look-up, extras and variables."""
    cpu = _core.cpu_info()
    print(f"ai-model-optimizations {__version__}, Python {platform.python_version()}")
    print(f"row        {cpu['row']}  (available: {', '.join(cpu['available'])})")
    print(f"threads    {_core.thread_count()}")
    for line in describe_cuda():
        print(f"cuda       {line.removeprefix('CUDA: ')}")
    print(f"hub cache  {hub_cache()}")
    try:
        print(f"model      {DEFAULT_MODEL}: {find_local(DEFAULT_MODEL)}")
    except FileNotFoundError as error:
        print(f"model      {error}")
    print("extras")
    for package, purpose in EXTRAS.items():
        installed = importlib.util.find_spec(package) is not None
        print(f"  {package:22} {'yes' if installed else 'no ':4} {purpose}")
    print("variables")
    for name, purpose in VARIABLES.items():
        print(f"  {name:22} {os.environ.get(name, '(not set)'):12} {purpose}")
    return 0


def find_local(name: str) -> str:
    """Return where a model is on this machine, without using the network."""
    return str(find_model(name, download=False))
