"""What a checkpoint allows to be split over ranks, and what is then left for each.

Pure: numbers only.
"""

from __future__ import annotations

from dataclasses import replace

from model.contract.config import ModelConfig
from model.contract.errors import ConfigError


def possible_sizes(config: ModelConfig) -> list[int]:
    """Numbers of ranks that a checkpoint can be split over, 1 included."""
    heads, inner = config.num_heads, config.intermediate_size // 2
    return [size for size in range(1, heads + 1) if heads % size == 0 and inner % size == 0]


def require_divisible(config: ModelConfig, size: int) -> None:
    """Refuses a number of ranks that a checkpoint cannot be split over.

    Args:
        config: of the checkpoint.
        size: ranks of tensor parallelism.

    Raises:
        ConfigError: saying which numbers of ranks there could be.
    """
    possible = possible_sizes(config)
    if size in possible:
        return
    raise ConfigError(
        f"--tensor-parallel-size {size}: this checkpoint has {config.num_heads} heads and an MLP of "
        f"{config.intermediate_size // 2} columns, which do not divide by it; possible are "
        f"{', '.join(map(str, possible))}"
    )


def share_of_config(config: ModelConfig, size: int) -> ModelConfig:
    """The numbers of a rank's part: its heads and columns; the residual stream and the vocabulary are everybody's."""
    return replace(
        config, num_heads=config.num_heads // size, intermediate_size=config.intermediate_size // 2 // size * 2
    )
