"""How a checkpoint is cut among processes: layers over stages, and each layer over ranks.

Pure: numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from model.contract.config import ModelConfig
from model.contract.errors import ConfigError


class Placement(NamedTuple):
    """Which part of a model a process has.

    Attributes:
        rank: among those that share each of its layers (tensor parallelism).
        size: how many those are.
        stage: which of the stretches of layers it has (pipeline parallelism); a step goes through them in order.
        num_stages: how many there are.
    """

    rank: int = 0
    size: int = 1
    stage: int = 0
    num_stages: int = 1

    @classmethod
    def of(cls, number: int, size: int, num_stages: int) -> Placement:
        """The place of a process by its number. Number 0 leads: logits are there, as it is of the last stage."""
        return cls(number % size, size, (number // size - 1) % num_stages, num_stages)

    @property
    def number(self) -> int:
        """Of the process, among all of the model."""
        return (self.stage + 1) % self.num_stages * self.size + self.rank

    @property
    def num_processes(self) -> int:
        """Of the model."""
        return self.size * self.num_stages

    @property
    def is_leader(self) -> bool:
        """Whether it plans the steps, and samples."""
        return self.number == 0

    @property
    def is_first_stage(self) -> bool:
        """Whether it has the embedding."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether it has the final norm and the output layer."""
        return self.stage == self.num_stages - 1

    def neighbour(self, distance: int) -> int:
        """Number of the process that has the same rank so many stages on."""
        return self._replace(stage=self.stage + distance).number


def possible_sizes(config: ModelConfig) -> list[int]:
    """Numbers of ranks that a checkpoint's layers can be split over, 1 included."""
    heads, inner = config.num_heads, config.intermediate_size // 2
    return [size for size in range(1, heads + 1) if heads % size == 0 and inner % size == 0]


def require_divisible(config: ModelConfig, size: int, num_stages: int) -> None:
    """Refuses numbers of ranks and stages that a checkpoint cannot be split over.

    Args:
        config: of the checkpoint.
        size: ranks of tensor parallelism.
        num_stages: of pipeline parallelism.

    Raises:
        ConfigError: saying which numbers there could be.
    """
    possible = possible_sizes(config)
    if size not in possible:
        raise ConfigError(
            f"--tensor-parallel-size {size}: this checkpoint has {config.num_heads} heads and an MLP of "
            f"{config.intermediate_size // 2} columns, which do not divide by it; possible are "
            f"{', '.join(map(str, possible))}"
        )
    if num_stages > config.num_layers:
        raise ConfigError(
            f"--pipeline-parallel-size {num_stages}: this checkpoint has only {config.num_layers} layers, and each rank"
            " takes at least one"
        )


def share_of_config(config: ModelConfig, size: int, layers: range) -> ModelConfig:
    """The numbers of a rank's part: its layers, heads and columns; every rank has all hidden states."""
    return replace(
        config,
        num_layers=len(layers),
        attention_windows=config.attention_windows[layers.start : layers.stop],
        num_heads=config.num_heads // size,
        intermediate_size=config.intermediate_size // 2 // size * 2,
    )


def layers_of_stages(embedding: int, layers: Sequence[int], head: int, num_stages: int) -> list[range]:
    """Cuts layers into stretches that weigh as nearly the same as whole layers allow; none is empty.

    Args:
        embedding: weight of what the first stage has beside.
        layers: of each.
        head: of what the last has beside.
        num_stages: at most as many as there are layers.
    """
    weights_before = list(accumulate(layers, initial=embedding))  # a cut before layer i leaves so much in front
    total = weights_before[-1] + head
    cuts = [0]
    for stage in range(1, num_stages):
        possible = range(cuts[-1] + 1, len(layers) - (num_stages - stage) + 1)
        cuts.append(min(possible, key=lambda i: abs(weights_before[i] - total * stage / num_stages)))
    return [range(low, high) for low, high in zip(cuts, [*cuts[1:], len(layers)], strict=True)]
