"""The training loop: steps, the running average of the weights, the saved state."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from demo.recipe.training.attention_loss import AttentionLoss
from demo.recipe.training.batches import Batch, StreamSettings, stream, tokenizer_of
from demo.recipe.training.copy_init import write_copy_heads
from demo.recipe.training.data_parallel import Peers
from demo.recipe.training.grid import on_grid
from demo.recipe.training.model import ModelConfig, QwenForTraining
from demo.recipe.training.optimizer import make_optimizers
from demo.recipe.training.vocabulary import train_vocabulary, write_ranks

LOG_EVERY_STEPS = 20
AVERAGE_SHARE = 0.01  # share of each step in the running average of the weights, which resembles a cooled-down model


@dataclass
class Progress:
    """The progress of the training; saved with the state."""

    step: int = 0
    tokens: int = 0
    next_document: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains a model as the command line says."""

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
        """Restores the saved state, whose model sizes override the command line's."""
        saved = torch.load(self.state_dir / "state.pt", map_location="cpu", weights_only=True)
        self.config = ModelConfig(**saved["config"])
        if self.config != self.model.config:
            self.model = QwenForTraining(self.config).to(self.device)
            self.optimizers = make_optimizers(self.model, self.args.muon_lr, self.args.adam_lr, self.peers)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]  # keep the command line's rates
            optimizer.load_state_dict(state)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        self.progress = Progress(**saved["progress"])
        average = saved.get("average", saved["model"])  # older states have none
        self.average = {name: p.to(self.device, copy=True) for name, p in average.items()}
        print(f"resuming after step {self.progress.step}, {self.progress.tokens / 1e6:.2f} million tokens")

    def save(self, name: str = "state.pt") -> None:
        """Writes the state, then replaces the old one. All processes have the same state; the first one writes."""
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
        """Makes one update; returns the mean loss of this process's share, as a tensor on the device."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
        total = sum(float(batch.weights[:, 1:].sum()) for batch in batches)
        losses = [torch.zeros((), device=self.device)]
        # One autocast context for the whole step, as it caches the weights in bfloat16.
        rounded = on_grid(self.model.parameters(), self.args.grid_steps)
        with rounded, torch.autocast(self.device.type, torch.bfloat16, enabled=not self.args.float32):
            for batch in self.peers.share(batches):
                batch = batch.to(self.device)
                attention_loss = AttentionLoss(batch.hints, batch.ids, batch.weights)
                loss = self.model.loss(batch.ids, batch.weights, attention_loss)
                ((loss + attention_loss.loss) / total).backward()
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
        """Returns the settings of the stream of batches."""
        return StreamSettings(
            seed=self.args.seed,
            vocabulary=str(self.vocabulary),
            step_tokens=self.args.step_tokens,
            max_length=self.config.seq_length,
            pool_documents=self.args.pool_documents,
            workers=self.args.workers,
        )

    def rate(self, done: float) -> float:
        """Returns the learning rate as a share of its peak, when a share `done` of this run's budget is used."""
        warm = min(1.0, (self.progress.step + 1) / self.args.warmup_steps)
        cooldown = self.args.cooldown
        return warm if done <= 1 - cooldown else warm * max(0.02, (1 - done) / cooldown)

    def run(self) -> None:
        """Trains until the budget is used or a stop is requested."""
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
                self.save()  # the state before the cool-down, from which training can continue later
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
