"""Render results/encoder-<row>.json into README's table and results/encoder-<row>.svg.

The table replaces what stands between the two marker comments of README.md; without them it is
only printed. The newest result is taken unless a file is given.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

import harness

BEGIN, END = "<!-- benchmark: encoder -->", "<!-- end of benchmark -->"


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


def main() -> None:
    given = [Path(argument) for argument in sys.argv[1:]]
    results = given or sorted(
        harness.RESULTS.glob("encoder-*.json"), key=lambda path: path.stat().st_mtime
    )
    if not results:
        raise SystemExit("no result: run bench_encoder.py first")
    path = results[-1]
    result = json.loads(path.read_text())
    path.with_suffix(".svg").write_text(plot(result))
    text = table(result)
    print(text)
    readme = harness.ROOT / "README.md"
    page = readme.read_text()
    if BEGIN in page and END in page:
        before, rest = page.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
