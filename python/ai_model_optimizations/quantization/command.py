"""``ai-model-optimizations quantize``: makes a smaller model from a model on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._files import check_writable
from .model_quantizer import ModelQuantizer


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "quantize",
        help="write a model with smaller weights",
        description="Sentence-embedding models become packed folders, which EmbeddingModel.load "
        "maps; other safetensors files and folders keep their form.",
    )
    parser.add_argument("source", metavar="SRC", help="a model folder, name or safetensors file")
    parser.add_argument("target", metavar="DST", help="must not exist, or be an empty folder")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="f16, bf16, int8, auto (the fastest 16-bit type) or smallest",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="NAME",
        help="name or regex to leave as it is",
    )
    parser.add_argument(
        "--min-cosine", type=float, help="fail when a text's vector changes more than this"
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing, tell sizes")
    parser.add_argument("--report", action="store_true", help="print a line for each tensor")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Quantize and print the report."""
    if options.json is not None:
        check_writable(options.json)
    quantizer = ModelQuantizer(options.dtype, skip=options.skip, min_cosine=options.min_cosine)
    report = quantizer.quantize_path(options.source, options.target, dry_run=options.dry_run)
    print(report.table() if options.report else "\n".join(report.summary()))
    if options.json is not None:
        options.json.write_text(report.to_json() + "\n", encoding="utf-8")
    return 0
