"""What a checkpoint allows to be split over ranks, and what is then left for each.

Pure: numbers only.
"""

from __future__ import annotations

from dataclasses import replace

from model.contract.config import ModelConfig
from model.contract.errors import ConfigError


def require_divisible(config: ModelConfig, size: int) -> None:
    """Refuses a number of ranks that a checkpoint cannot be split over.

    Args:
        config: of the checkpoint.
        size: ranks of tensor parallelism.

    Raises:
        ConfigError: saying which numbers of ranks there could be.
    """
    heads, inner = config.num_heads, config.intermediate_size // 2
    if heads % size == 0 and inner % size == 0 and size <= config.vocab_size:
        return
    possible = [n for n in range(1, heads + 1) if heads % n == 0 and inner % n == 0]
    raise ConfigError(
        f"--tensor-parallel-size {size}: this checkpoint has {heads} heads and an MLP of {inner} columns, which do not "
        f"divide by it; possible are {', '.join(map(str, possible))}"
    )


def share_of_config(config: ModelConfig, size: int) -> ModelConfig:
    """The numbers of a rank's part: its heads and columns; the residual stream and the vocabulary are everybody's."""
    return replace(
        config, num_heads=config.num_heads // size, intermediate_size=config.intermediate_size // 2 // size * 2
    )
