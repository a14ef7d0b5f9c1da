"""Plots the figures over the levels: throughput, requests, time to first token, time between tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.report import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PERCENTILES = {"p50": "#1b6ca8", "p90": "#e08e0b", "p99": "#b3312c"}
_STYLES = ("-", "--", ":", "-.")
_SIZE_INCHES = (11.0, 7.5)


def check_plotting(path: Path) -> None:
    """Checks before a long run that its plot can be drawn.

    Raises:
        ValueError: it cannot; the message says what to do.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install 'qwen-server[bench]'") from error
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {path}: name a .png, .svg or .pdf file")


def draw(path: Path, runs: Sequence[tuple[str, Figures]]) -> None:
    """Writes the plot.

    Args:
        path: its suffix determines the format.
        runs: (name, figures) of each run; several are drawn over each other.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps global state and looks for a display

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    throughput, requests, first, between = figure.subplots(2, 2).flat
    for (name, run), style in zip(runs, _STYLES, strict=False):
        prefix = f"{name}: " if len(runs) > 1 else ""
        levels = run["levels"]
        xs = [_place(level) for level in levels]
        for key, title, color in (
            ("output_tokens_per_s", "output", "#1b6ca8"),
            ("total_tokens_per_s", "prompt and output", "#7a9e3f"),
        ):
            throughput.plot(xs, [level[key] for level in levels], style, marker="o", color=color, label=prefix + title)
        completed = [level["requests_per_s"] for level in levels]
        requests.plot(xs, completed, style, marker="o", color="#5b4b8a", label=f"{prefix}completed")
        _plot_percentiles(first, levels, "ttft_s", style, prefix)
        _plot_percentiles(between, levels, "inter_token_s", style, prefix)
    titles = ("Tokens a second", "Requests a second", "Time to first token, ms", "Between token events, ms")
    x_title = "requests at a time" if "concurrency" in runs[0][1]["levels"][0] else "arrivals a second"
    for axes, title in zip((throughput, requests, first, between), titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel(x_title)
        axes.set_xticks(sorted({_place(level) for _, run in runs for level in run["levels"]}))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(" and ".join(_title(run) for _, run in runs))
    figure.savefig(path, dpi=120)


def _plot_percentiles(axes: Axes, levels: Sequence[Figures], key: str, style: str, prefix: str) -> None:
    told = [level for level in levels if level["latency"].get(key)]
    for percentile, color in _PERCENTILES.items():
        ys = [level["latency"][key][percentile] * 1e3 for level in told]
        if ys:
            axes.plot(
                [_place(level) for level in told], ys, style, marker="o", color=color, label=f"{prefix}{percentile}"
            )


def _place(level: Figures) -> float:
    return float(level["concurrency"] if "concurrency" in level else level["request_rate"])


def _title(run: Figures) -> str:
    server = run.get("server") or {}
    model = str(server.get("model", "a model")).rsplit("/", 1)[-1]
    return f"{model} at {server.get('base_url', 'a server')}, {str(run.get('time', ''))[:10]}"
