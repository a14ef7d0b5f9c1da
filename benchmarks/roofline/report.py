"""The figures of the roofline as Markdown, JSON and a plot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def write(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Writes what was asked for."""
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.png:
        draw(figures, arguments.png)


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{figures['device']}, torch {figures['torch']}, commit {figures['commit']}: copy "
        f"{figures['copy_bytes_per_s'] / 1e9:,.0f} GB/s, matmul {figures['matmul_flops_per_s'] / 1e12:,.2f} TFLOP/s\n",
        "| shape | sequences | ms a step | tokens/s | share of the limit | transformers eager | static, compiled |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in figures["shapes"]:
        peers = shape.get("transformers", {})
        for row in shape["decode"]:
            key = str(row["batch_size"])
            others = (peers.get(kind, {}).get(key) for kind in ("eager", "static_compiled"))
            cells = ["" if rate is None else f"{rate:,.1f}" for rate in others]
            lines.append(
                f"| {shape['shape']} | {key} | {row['ms_per_step']:.2f} | {row['tokens_per_s']:,.1f} "
                f"| {row['share_of_limit']:.2f} | {' | '.join(cells)} |"
            )
        lines.append(
            f"| {shape['shape']} | prefill | | {shape['prefill_tokens_per_s']:,.0f} "
            f"| {shape['prefill_share_of_limit']:.2f} | | |"
        )
    return "\n".join(lines)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draws the shares of the limit over the batch sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for shape in figures["shapes"]:
        sizes = [row["batch_size"] for row in shape["decode"]]
        axes.plot(sizes, [row["share_of_limit"] for row in shape["decode"]], marker="o", label=shape["shape"])
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1)
    axes.set_xlabel("sequences in a step")
    axes.set_ylabel("share of the device's limit")
    axes.set_title(f"Decoding, {figures['device']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
