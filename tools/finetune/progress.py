"""Shows a training while it runs, and keeps its losses and their curve."""

from __future__ import annotations

import importlib
import json
import logging
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from model.contract.errors import ConfigError
from tools.finetune.libraries import require

logger = logging.getLogger(__name__)

LOSSES = "losses.jsonl"
CURVE = "loss.png"
_SMOOTHING = 0.9
_NUM_LINES = 50
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Watcher:
    """Called by the Trainer at each turn of its loop.

    Args:
        is_main: show and write; other processes only stop.
        can_stop: let an interrupt end the training after the step, with a checkpoint. Several processes would have to
            agree on the step.
    """

    def __init__(self, out: Path, *, is_main: bool, can_stop: bool) -> None:
        self.was_interrupted = False
        self._out = out
        self._is_main = is_main
        self._can_stop = can_stop
        self._bar: tqdm[Any] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar, and takes over interrupts."""
        if self._is_main:
            total, done = state.max_steps, state.global_step
            self._bar = tqdm(total=total, initial=done, desc="training", unit="step", disable=None)
        if self._can_stop:
            self._previous = {number: signal.signal(number, self._interrupt) for number in _SIGNALS}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar, gives interrupts back, and writes the losses."""
        if self._bar is not None:
            self._bar.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.write(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the training with a checkpoint if it was interrupted."""
        if self.was_interrupted:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Shows the loss of a step.

        Raises:
            ConfigError: it is no number.
        """
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(float(loss)):
            raise ConfigError(f"the loss of step {state.global_step} is no number; lower --learning-rate")
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {float(loss):.4f}", refresh=False)
            self._bar.update(state.global_step - self._bar.n)
            if self._bar.disable and self._is_due(state):
                logger.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, float(loss))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes the losses beside a checkpoint."""
        self.write(state)

    def write(self, state: Any) -> None:
        """Writes the losses so far, and draws them."""
        if self._is_main:
            entries = [entry for entry in state.log_history if "loss" in entry]
            (self._out / LOSSES).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
            if entries:
                draw_curve(entries, self._out / CURVE)

    @staticmethod
    def _is_due(state: Any) -> bool:
        """Whether to log a line, where no bar is seen."""
        every = max(1, state.max_steps // _NUM_LINES)
        return bool(state.global_step % every == 0 or state.global_step == state.max_steps)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.was_interrupted:
            raise KeyboardInterrupt
        self.was_interrupted = True
        logger.info("interrupted: a checkpoint is written after this step; once more to end now")


def make_watcher(out: Path, *, is_main: bool, can_stop: bool) -> Watcher:
    """Makes a `Watcher` that is a transformers.TrainerCallback."""
    (transformers,) = require("transformers")

    class Callback(Watcher, transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        """Has the methods for the other turns of the loop."""

    return Callback(out, is_main=is_main, can_stop=can_stop)


def draw_curve(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the losses, where matplotlib is installed; entries (at least one) have `step` and `loss`."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        logger.warning("%s is not drawn: matplotlib is not installed", CURVE)
        return
    steps, losses = [entry["step"] for entry in entries], [float(entry["loss"]) for entry in entries]
    smooth, mean = [], losses[0]
    for loss in losses:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smooth.append(mean)
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, label="loss of a step")
    axes.plot(steps, smooth, color="tab:blue", label="smoothed")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
