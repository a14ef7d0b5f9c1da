"""How a checkpoint is cut among processes: layers over stages, and each layer over ranks.

Pure: numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from model.contract.config import ModelConfig
from model.contract.errors import ConfigError


class Placement(NamedTuple):
    """Which part of a model a process has.

    Attributes:
        rank: its number among the ranks that share each of its layers (tensor parallelism).
        size: how many ranks share each layer.
        stage: its stretch of layers (pipeline parallelism); a step goes through the stages in order.
    """

    rank: int = 0
    size: int = 1
    stage: int = 0
    num_stages: int = 1

    @classmethod
    def of(cls, number: int, size: int, num_stages: int) -> Placement:
        """Returns the place of a process by its number. Number 0 leads: it is in the last stage, where logits are."""
        return cls(number % size, size, (number // size - 1) % num_stages, num_stages)

    @property
    def number(self) -> int:
        """The process's number among all of the model."""
        return (self.stage + 1) % self.num_stages * self.size + self.rank

    @property
    def num_processes(self) -> int:
        """Processes of the whole model."""
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
        """Returns the number of the process with the same rank, `distance` stages on."""
        return self._replace(stage=self.stage + distance).number


def possible_sizes(config: ModelConfig) -> list[int]:
    """Lists the numbers of ranks that a checkpoint's layers can be split over, 1 included."""
    common = math.gcd(config.num_heads, config.intermediate_size // 2)
    return [size for size in range(1, common + 1) if common % size == 0]


def require_divisible(config: ModelConfig, size: int, num_stages: int) -> None:
    """Refuses numbers of ranks and stages that a checkpoint cannot be split over.

    Raises:
        ConfigError: says which numbers are possible.
    """
    if config.num_heads % size or config.intermediate_size // 2 % size:
        raise ConfigError(
            f"--tensor-parallel-size {size}: this checkpoint has {config.num_heads} heads and an MLP of "
            f"{config.intermediate_size // 2} columns, which do not divide by it; possible are "
            f"{', '.join(map(str, possible_sizes(config)))}"
        )
    if num_stages > config.num_layers:
        raise ConfigError(
            f"--pipeline-parallel-size {num_stages}: this checkpoint has only {config.num_layers} layers, and each rank"
            " takes at least one"
        )


def share_of_config(config: ModelConfig, size: int, layers: range) -> ModelConfig:
    """Returns the numbers of a rank's part: its layers, heads and columns; every rank has all hidden states."""
    return replace(
        config,
        num_layers=len(layers),
        attention_windows=config.attention_windows[layers.start : layers.stop],
        num_heads=config.num_heads // size,
        intermediate_size=config.intermediate_size // 2 // size * 2,
    )


def layers_of_stages(embedding: int, layers: Sequence[int], head: int, num_stages: int) -> list[range]:
    """Cuts layers into stretches of bytes as nearly equal as whole layers allow; none is empty.

    Args:
        embedding: bytes that the first stage has besides.
        layers: bytes of each layer.
        head: bytes that the last stage has besides.
        num_stages: at most as many as there are layers.
    """
    bytes_before = list(accumulate(layers, initial=embedding))  # in front of a cut before layer i
    total = bytes_before[-1] + head
    cuts = [0]
    for stage in range(1, num_stages):
        possible = range(cuts[-1] + 1, len(layers) - (num_stages - stage) + 1)
        cuts.append(min(possible, key=lambda i: abs(bytes_before[i] - total * stage / num_stages)))
    return [range(low, high) for low, high in zip(cuts, [*cuts[1:], len(layers)], strict=True)]
