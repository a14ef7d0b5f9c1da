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
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from demo.recipe.training.attention_loss import Guide
from demo.recipe.training.batches import Batch, StreamSettings, stream, tokenizer_of
from demo.recipe.training.copy_init import write_copy_heads
from demo.recipe.training.data_parallel import Peers, start_peers
from demo.recipe.training.export import export_checkpoint
from demo.recipe.training.grid import GRID_STEPS, on_grid
from demo.recipe.training.model import ModelConfig, QwenForTraining
from demo.recipe.training.optimizer import make_optimizers
from demo.recipe.training.vocabulary import train_vocabulary, write_ranks

LOG_EVERY_STEPS = 20
AVERAGE_SHARE = 0.01  # of a step in the running average of the weights, which shows what a cool-down would bring


@dataclass
class Progress:
    """Where the training is; saved with the state."""

    step: int = 0
    tokens: int = 0
    next_document: int = 0
    seconds: float = 0.0


class Trainer:
    """One model in training.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.state_dir = Path(args.state)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.vocabulary = self.state_dir / "qwen.tiktoken"
        if not self.vocabulary.exists():
            print("learning the vocabulary")
            write_ranks(train_vocabulary(args.vocabulary_documents, args.seed), self.vocabulary)
        torch.manual_seed(args.seed)
        self.device = torch.device(args.device)
        rows = tokenizer_of(str(self.vocabulary)).num_tokens
        self.config = ModelConfig(
            vocab_size=-(-rows // 128) * 128,
            hidden_size=args.hidden_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden_size // args.head_dim,
            kv_channels=args.head_dim,
            intermediate_size=args.intermediate_size,
            seq_length=args.seq_length,
        )
        self.model = QwenForTraining(self.config)
        if not args.no_copy_heads:
            write_copy_heads(self.model, args.seed)
        self.model.to(self.device)
        self.peers = Peers(args.rank, args.processes, self.state_dir)
        self.optimizers = make_optimizers(self.model, args.muon_lr, args.adam_lr, self.peers)
        self.progress = Progress()
        self.average = {name: p.detach().clone() for name, p in self.model.state_dict().items()}
        self.recent: list[Tensor] = []
        self.stop_asked = False
        if (self.state_dir / "state.pt").exists():
            self.load()

    def load(self) -> None:
        """Goes back to the saved state; its sizes win over the command line's."""
        saved = torch.load(self.state_dir / "state.pt", map_location="cpu", weights_only=True)
        self.config = ModelConfig(**saved["config"])
        if self.config != self.model.config:
            self.model = QwenForTraining(self.config).to(self.device)
            self.optimizers = make_optimizers(self.model, self.args.muon_lr, self.args.adam_lr, self.peers)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]  # the command line's, not the saved ones
            optimizer.load_state_dict(state)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        self.progress = Progress(**saved["progress"])
        average = saved.get("average", saved["model"])  # states of before have none
        self.average = {name: p.to(self.device, copy=True) for name, p in average.items()}
        print(f"resuming after step {self.progress.step}, {self.progress.tokens / 1e6:.2f} million tokens")

    def save(self, name: str = "state.pt") -> None:
        """Writes the state beside the old one, then replaces it; every process has the same, the first one writes."""
        if self.args.rank:
            return
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": asdict(self.progress),
        }
        part = self.state_dir / (name + ".part")
        torch.save(state, part)
        part.replace(self.state_dir / name)

    def train_step(self, batches: list[Batch], rate: float) -> Tensor:
        """One update; returns the mean loss (of this process' share), still on the device."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
        total = sum(float(batch.weights[:, 1:].sum()) for batch in batches)
        losses = [torch.zeros((), device=self.device)]
        # One context for the whole step: it keeps the weights it has rounded.
        rounded = on_grid(self.model.parameters(), self.args.grid_steps)
        with rounded, torch.autocast(self.device.type, torch.bfloat16, enabled=not self.args.float32):
            for batch in self.peers.share(batches):
                batch = batch.to(self.device)
                guide = Guide(batch.hints, batch.ids, batch.weights)
                loss = self.model.loss(batch.ids, batch.weights, guide)
                ((loss + guide.loss) / total).backward()
                losses.append(loss.detach() / total)
        self.peers.add_gradients(list(self.model.parameters()))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self.model.state_dict().items():
                self.average[name].lerp_(p, AVERAGE_SHARE)
        return torch.stack(losses).sum()

    def stream_settings(self) -> StreamSettings:
        """How the corpus is cut into batches."""
        return StreamSettings(
            seed=self.args.seed,
            vocabulary=str(self.vocabulary),
            step_tokens=self.args.step_tokens,
            max_length=self.config.seq_length,
            pool_documents=self.args.pool_documents,
            workers=self.args.workers,
        )

    def rate(self, done: float) -> float:
        """Learning rate as a share of its peak.

        Args:
            done: share of this invocation's budget that is used.
        """
        warm = min(1.0, (self.progress.step + 1) / self.args.warmup_steps)
        cooldown = self.args.cooldown
        return warm if done <= 1 - cooldown else warm * max(0.02, (1 - done) / cooldown)

    def run(self) -> None:
        """Trains until the budget is used or somebody asks it to stop."""
        args, progress = self.args, self.progress
        began, began_tokens, saved_at = time.monotonic(), progress.tokens, time.monotonic()
        began_seconds, cooling = progress.seconds, False
        bar = tqdm(
            total=100,
            unit="%",
            desc="training",
            bar_format="{desc} {percentage:.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
            disable=args.rank > 0,
        )
        steps = stream(self.stream_settings(), progress.next_document)
        for next_document, batches in steps:
            spent = time.monotonic() - began
            done = (progress.tokens - began_tokens) / args.tokens if args.tokens else spent / 60 / args.minutes
            done = self.peers.agree(2.0 if self.stop_asked else done)
            if done >= 1:
                break
            if not cooling and args.cooldown and done > 1 - args.cooldown:
                cooling = True
                self.save()  # the open state, from which training can go on later
            self.recent.append(self.train_step(batches, self.rate(done)))
            progress.step += 1
            progress.tokens += sum(batch.ids.numel() for batch in batches)
            progress.seconds = began_seconds + spent
            if next_document is not None:
                progress.next_document = next_document
            if progress.step % LOG_EVERY_STEPS == 0:
                self.log(bar, done, (progress.tokens - began_tokens) / max(spent, 1e-9))
            if next_document is not None and not cooling and time.monotonic() - saved_at > args.save_minutes * 60:
                self.save()
                saved_at = time.monotonic()
        bar.close()
        steps.close()
        self.save("cooled.pt" if cooling else "state.pt")

    def log(self, bar: tqdm, done: float, speed: float) -> None:
        """Writes a line of the loss curve."""
        loss = self.peers.sum(torch.stack(self.recent).mean().item())
        self.recent.clear()
        if self.args.rank:
            return
        line = {**asdict(self.progress), "loss": round(loss, 4), "rate": round(self.rate(done), 4)}
        with (self.state_dir / "losses.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        bar.n = round(done * 100, 2)
        bar.set_postfix_str(
            f"step {self.progress.step} {self.progress.tokens / 1e6:.2f}M tokens loss {loss:.3f} {speed:.0f} tok/s"
        )


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
