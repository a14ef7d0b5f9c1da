"""One sequence's part in sampling, its random stream, and how numbers get to the device."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AlignedList
from typing import NamedTuple

import torch

from model.contract.sampling_params import SamplingParams

_MASK_64 = (1 << 64) - 1

_MAX_UNPINNED_BYTES = 32 << 10


class SamplingRow(NamedTuple):
    """One sequence whose next token is wanted.

    Attributes:
        seq_id: names its penalty history.
        token_ids: prompt and output so far; the last may be `UNKNOWN_TOKEN`.
        num_prompt_tokens: how many of them are the prompt.
        stream_key: 64 bits from seed and choice index (`stream_key`).
        source: index of that last token among those sampled by the step before, or -1.
        draft_ids: guesses that are taken to follow `token_ids`: the row samples the token behind them.
    """

    seq_id: int
    sampling: SamplingParams
    token_ids: list[int]
    num_prompt_tokens: int
    stream_key: int
    source: int = -1
    draft_ids: tuple[int, ...] = ()

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, guesses included."""
        return len(self.token_ids) + len(self.draft_ids) - self.num_prompt_tokens


# From logits [S, vocab_size] and S rows to ids [S] int64 and whether each row was of numbers, [S] bool.
SampleTokens = Callable[[torch.Tensor, AlignedList[SamplingRow]], tuple[torch.Tensor, torch.Tensor]]


def stream_key(seed: int, choice_index: int) -> int:
    """64 bits naming the random stream of one choice."""
    return _mix(_mix(seed & _MASK_64) ^ (choice_index + 1))


def uniform(key: int, index: int) -> float:
    """The stream's number for its token number `index`, in [0, 1): splitmix64's finaliser over a counter."""
    return (_mix(key ^ _mix(index + 1)) >> 11) * 2.0**-53


def on_device(device: torch.device, values: object, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Moves numbers to the device without waiting for what it is doing."""
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves numbers from the host without waiting for what the device is doing.

    A GPU's driver takes a little from any memory at once; with more it may wait, unless the memory is pinned.
    """
    if device.type == "cuda" and numbers.nbytes > _MAX_UNPINNED_BYTES:
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)
