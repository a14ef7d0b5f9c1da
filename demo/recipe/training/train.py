"""Trains the small checkpoint.

`python -m demo.recipe.training.train --out demo/checkpoint --state demo/.train --minutes 120`.

The learning rate is warmed up, held, and cooled down at the end of an invocation (or not at all: `--cooldown 0`
leaves the state open). State is saved as it goes; the same command goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import torch

from demo.recipe.training.data_parallel import start_peers
from demo.recipe.training.export import export_checkpoint
from demo.recipe.training.grid import GRID_STEPS
from demo.recipe.training.trainer import Trainer


def plot_losses(state_dir: Path, out: Path) -> None:
    """Draws the loss curve."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (state_dir / "losses.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.plot([line["tokens"] / 1e6 for line in lines], [line["loss"] for line in lines], linewidth=0.8)
    axes.set(
        xlabel="million tokens",
        ylabel="loss of supervised tokens",
        yscale="log",
        title="Training of the demo checkpoint",
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m demo.recipe.training.train", description=__doc__)
    p.add_argument("--out", default="demo/checkpoint", help="folder of the checkpoint to write")
    p.add_argument("--state", default="demo/.train", help="folder of the training state")
    p.add_argument("--minutes", type=float, default=180.0, help="how long this invocation trains")
    p.add_argument("--tokens", type=int, default=0, help="how many tokens instead")
    p.add_argument("--cooldown", type=float, default=0.25, help="share of the budget that cools down; 0: leave it open")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    p.add_argument("--processes", type=int, default=1, help="share every step; on a CPU one a core, with --threads 1")
    p.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--workers", type=int, default=0, help="processes that write the corpus ahead")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--hidden-size", type=int, default=256)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--head-dim", type=int, default=64)
    p.add_argument("--intermediate-size", type=int, default=1024)
    p.add_argument("--seq-length", type=int, default=2048)
    p.add_argument("--step-tokens", type=int, default=4096)
    p.add_argument("--pool-documents", type=int, default=256, help="written together; some ten steps' worth")
    p.add_argument("--muon-lr", type=float, default=0.01)
    p.add_argument("--adam-lr", type=float, default=2e-3)
    p.add_argument("--warmup-steps", type=int, default=60)
    p.add_argument("--save-minutes", type=float, default=5.0)
    p.add_argument("--no-copy-heads", action="store_true", help="begin with a wholly random model")
    p.add_argument("--float32", action="store_true", help="no bfloat16 in the matrix products")
    p.add_argument(
        "--grid-steps",
        type=int,
        choices=GRID_STEPS,
        metavar="N",
        help="train, and export, with weights rounded to a grid (grid.py)",
    )
    p.add_argument("--vocabulary-documents", type=int, default=30_000)
    p.add_argument("--no-evaluation", action="store_true")
    return p


def main(argv: list[str] | None = None) -> None:
    """Trains, exports, draws the curve, evaluates."""
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    peers = start_peers(args.processes, args.rank, sys.argv[1:] if argv is None else argv, Path(args.state))
    trainer = Trainer(args)

    def ask_to_stop(*_: object) -> None:
        trainer.stop_asked = True

    previous = signal.signal(signal.SIGTERM, ask_to_stop)
    try:
        trainer.run()
    finally:
        signal.signal(signal.SIGTERM, previous)
    if args.rank:
        return
    for peer in peers:
        peer.wait()
    out = Path(args.out)
    size = export_checkpoint(trainer.model, trainer.vocabulary, out, args.grid_steps)
    print(f"{out}: {size / 1e6:.1f} MB")
    if (trainer.state_dir / "losses.jsonl").exists():
        plot_losses(trainer.state_dir, out / "loss.png")
    if not args.no_evaluation and not trainer.stop_asked:
        from demo.recipe.evaluation.evaluate import evaluate_checkpoint, table

        report = evaluate_checkpoint(out, device=args.device)
        (out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
        print(table(report))


if __name__ == "__main__":
    main()
