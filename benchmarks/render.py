"""Render results/encoder-, quantizer- and cache-<row>.json into README's tables, and a plot.

A table replaces the text between its two marker comments in README.md; without them it is only
printed. The newest result of each benchmark is used unless files are given.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

import harness

END = "<!-- end of benchmark -->"


def table(result: dict[str, Any]) -> str:
    """The engines as a Markdown table, thousands of tokens per second."""
    machine, lengths = result["machine"], result["mean_tokens"]
    heads = [f"{name} ({tokens:.0f} tokens)" for name, tokens in lengths.items()]
    lines = [
        f"{machine['processor']}, row `{machine['row']}`, {machine['threads']} threads; thousands "
        f"of tokens per second, median; smallest cosine with {result['reference']}.",
        "",
        "| engine | " + " | ".join(heads) + " | one short text | cosine | memory after load |",
        "|---|" + "---|" * (len(heads) + 3),
    ]
    for name, engine in result["engines"].items():
        rates = [engine["tokens_per_second"][length]["median"] / 1000 for length in lengths]
        shown = f"**{name}**" if name.startswith("ours") else name
        lines.append(
            f"| {shown} | "
            + " | ".join(f"{rate:.1f}" for rate in rates)
            + f" | {engine['one_text_ms']['median']:.1f} ms | {engine['min_cosine']:.5f}"
            + f" | {engine['rss_mb']:.0f} MB |"
        )
    lines += ["", f"![Tokens per second](benchmarks/results/encoder-{machine['row']}.svg)"]
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> str:
    """One bar per engine and length, with the spread as a line."""
    lengths, engines = list(result["mean_tokens"]), result["engines"]
    most = max(e["tokens_per_second"][n]["max"] for e in engines.values() for n in lengths)
    left, bar, width = 210, 14, 480
    rows, y = [], 34
    for name, engine in engines.items():
        ours = name.startswith("ours")
        rows.append(f'<text x="{left - 8}" y="{y + 1.9 * bar}" text-anchor="end">{name}</text>')
        for index, length in enumerate(lengths):
            rate = engine["tokens_per_second"][length]
            low, middle, high = (width * rate[k] / most for k in ("min", "median", "max"))
            colour = ("#0b6e4f", "#159a70", "#5cc4a0") if ours else ("#777", "#999", "#bbb")
            rows.append(
                f'<rect x="{left}" y="{y}" width="{middle:.1f}" height="{bar - 2}" '
                f'fill="{colour[index % 3]}"/><path d="M{left + low:.1f} {y + 6}H{left + high:.1f}"'
                f' stroke="#222"/><text x="{left + high + 6:.1f}" y="{y + 10}" font-size="10">'
                f"{length} {rate['median'] / 1000:.1f}k</text>"
            )
            y += bar
        y += 8
    machine = result["machine"]
    title = f"Tokens per second, {machine['threads']} threads, {machine['processor']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" height="{y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>{"".join(rows)}</svg>\n'
    )


def quantizer_table(result: dict[str, Any]) -> str:
    """A SentenceTransformer before and after, as a Markdown table.

    Speeds and cosines are shown when that part of the benchmark was recorded.
    """
    machine, sizes = result["machine"], result["bytes"]["MiniLM"]
    encode = result.get("encode", {})
    works = [name for name in encode if name != "cosine"]
    lines = [
        f"all-MiniLM-L6-v2 on {machine['processor']}, row `{machine['row']}`, "
        f"{machine['threads']} threads"
        + ("; medians, and the smallest cosine with the model as it was." if works else "."),
        "",
        "| | weights |" + "".join(f" `encode` of {w} |" for w in works) + " cosine |" * bool(works),
        "|---|---|" + "---|" * (len(works) + bool(works)),
        _quantizer_row("before", sizes["f16"]["before"], encode, "torch fp32", works),
    ]
    for name, size in sizes.items():
        shown = f'`ModelQuantizer("{name}")`'
        lines.append(_quantizer_row(shown, size["after"], encode, name, works))
    return "\n".join(lines)


def _quantizer_row(
    shown: str, size: int, encode: dict[str, Any], name: str, works: list[str]
) -> str:
    cells = [shown, f"{size / 1e6:.1f} MB"]
    for work in works:
        seconds, before = encode[work][name]["median"], encode[work]["torch fp32"]["median"]
        gain = "" if shown == "before" else f" ({before / seconds:.1f}x)"
        cells.append(f"{seconds * 1e3:.1f} ms{gain}")
    if works:
        cells.append(f"{encode['cosine'][name]['least']:.5f}")
    return f"| {' | '.join(cells)} |"


def cache_table(result: dict[str, Any]) -> str:
    """Lookup times for growing numbers of entries, and how many times as long the peers take."""
    sizes = {key: part for key, part in result.items() if key.startswith("rows_")}
    peers = list(sizes["rows_1000"]["times_one_query"])
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, row `{machine['row']}`, one thread: a question that misses at "
        "threshold 0.85, median.",
        "",
        "| entries of 384 | `SmartCache` | " + " | ".join(peers) + " |",
        "|---|---|" + "---|" * len(peers),
    ]
    for part in sizes.values():
        us = part["one_query_1_thread"]["SmartCache f16"]["p50_us"]
        shown = f"{us:.1f} us" if us < 100 else f"{us / 1e3:.2f} ms"
        times = [part["times_one_query"].get(peer) for peer in peers]
        cells = [f"{ratio:.{0 if ratio >= 10 else 1}f}x" if ratio else "" for ratio in times]
        lines.append(f"| {part['rows']:,} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"encoder": table, "quantizer": quantizer_table, "cache": cache_table}
# A table needs these parts: some results hold only one part of a benchmark.
NEEDED = {"encoder": "mean_tokens", "quantizer": "bytes", "cache": "rows_1000"}


def newest(bench: str) -> list[Path]:
    """The newest result of a benchmark that has what its table needs, if there is one."""
    found = sorted(harness.RESULTS.glob(f"{bench}-*.json"), key=lambda path: path.stat().st_mtime)
    return [path for path in found if NEEDED[bench] in json.loads(path.read_text())][-1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw results' plots, put tables into README.")
    parser.add_argument("results", nargs="*", type=Path, help="the newest of each bench if none")
    paths = parser.parse_args().results or [path for bench in TABLES for path in newest(bench)]
    if not paths:
        raise SystemExit(f"no result: run bench_{', bench_'.join(TABLES)} first")
    for path in paths:
        result = json.loads(path.read_text())
        if result["bench"] == "encoder":
            path.with_suffix(".svg").write_text(plot(result))
        text = TABLES[result["bench"]](result)
        print(text)
        write(f"<!-- benchmark: {result['bench']} -->", text)


def write(begin: str, text: str) -> None:
    """Put a table into README.md, between ``begin`` and the end."""
    readme = harness.ROOT / "README.md"
    page = readme.read_text()
    if begin in page:
        before, rest = page.split(begin, 1)
        after = rest.split(END, 1)[1]
        readme.write_text(f"{before}{begin}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
