"""The GPU table of RESULTS.md, from the files that `benchmarks.gpu_day` leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- gpu day: begin -->", "<!-- gpu day: end -->"


def write(folder: Path, results: Path) -> None:
    """Replaces what stands between the markers; a file without them is left as it is."""
    text = results.read_text()
    if BEGIN not in text or END not in text:
        return
    before, rest = text.split(BEGIN, 1)
    results.write_text(f"{before}{BEGIN}\n{table(folder)}\n{END}{rest.split(END, 1)[1]}")


def table(folder: Path) -> str:
    """What the parts in a folder have measured, as Markdown."""
    files = [file for file in sorted(folder.glob("*.json")) if not file.name.endswith(".figures.json")]
    found = {file.stem: json.loads(file.read_text()) for file in files}
    figures = {name: part["figures"] for name, part in found.items() if part["figures"]}
    sections = [_circumstances(figures), _parts(found), _decode(figures), _prefill(figures), _memory(figures)]
    sections += [_http(figures), _agreement(found)]
    return "\n\n".join(section for section in sections if section)


def _rooflines(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each part's shapes, with the part's name."""
    names = [name for name in figures if name.startswith(("roofline", "peer"))]
    return [(name, shape) for name in names for shape in figures[name]["shapes"]]


def _circumstances(figures: dict[str, Any]) -> str:
    measured = next((figures[name] for name in figures if name.startswith("roofline")), None)
    if measured is None:
        return ""
    return (
        f"{measured['device']}, torch {measured['torch']}, commit {measured['commit']}: copy "
        f"{measured['copy_bytes_per_s'] / 1e9:,.0f} GB/s, product {measured['matmul_flops_per_s'] / 1e12:,.2f} TFLOP/s."
    )


def _parts(found: dict[str, Any]) -> str:
    lines = ["| part | what came of it | s |", "|---|---|---|"]
    for name, part in found.items():
        last_line = part["output"].strip().rpartition("\n")[2]
        summary = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", last_line) if "tests" in name else []
        word = {0: "done", None: "out of time"}.get(part["status"], f"status {part['status']}")
        lines.append(f"| {name} | {', '.join([word, *summary])} | {part['seconds']} |")
    return "\n".join(lines)


def _decode(figures: dict[str, Any]) -> str:
    rows = [
        f"| {shape['shape']}{' sampled' if 'sampled' in name else ''} | {row['batch_size']} | {row['ms_per_step']:.2f} "
        f"| {row['tokens_per_s']:,.0f} | {row['share_of_limit']:.2f} |"
        for name, shape in _rooflines(figures)
        for row in shape["decode"]
    ]
    head = "| shape | sequences | ms a step | tokens/s | share of the limit |\n|---|---|---|---|---|"
    return "\n".join([head, *rows]) if rows else ""


def _prefill(figures: dict[str, Any]) -> str:
    rows = [
        f"| {shape['shape']} | {shape['prefill_tokens_per_s']:,.0f} | {shape['prefill_share_of_limit']:.2f} |"
        for name, shape in _rooflines(figures)
        if "sampled" not in name and "256" not in name
    ]
    head = "| shape | prefill, tokens/s | share of the product's rate |\n|---|---|---|"
    return "\n".join([head, *rows]) if rows else ""


def _memory(figures: dict[str, Any]) -> str:
    rows = []
    for shape in figures.get("memory", []):
        for case, values in shape.items():
            if case != "shape" and values["peak_bytes"] is not None:
                published = "" if values["published_gb"] is None else values["published_gb"]
                rows.append(f"| {shape['shape']}, {case} | {values['peak_bytes'] / 1e9:.1f} | {published} |")
    return "\n".join(["| peak memory, GB | measured | published |\n|---|---|---|", *rows]) if rows else ""


def _http(figures: dict[str, Any]) -> str:
    served = {"http": "demo checkpoint", "http-1.8b": "1.8b"}
    rows = [
        f"| {model} | {level['concurrency']} | {level['output_tokens_per_s']:,.0f} |"
        for name, model in served.items()
        for level in figures.get(name, [])
    ]
    return "\n".join(["| served over HTTP | streams | tokens/s |\n|---|---|---|", *rows]) if rows else ""


def _agreement(found: dict[str, Any]) -> str:
    """The lines that the tests print."""
    output = found.get("agreement", {}).get("output", "")
    lines = re.findall(r"^.*(?:agreement|are the same alone).*$", output, re.MULTILINE)
    return "\n".join(f"- {line.strip().lstrip('.')}" for line in lines)
