"""A checkpoint's shapes, and numbers drawn for them: the inputs of trials and timed calls of kernels.

What is compiled into a kernel (heads, dims, dtypes, tiles) is the checkpoint's own, so that the kernels that will serve
are the ones that are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from model.backends.cuda.gptq_layout import PackedKind, PackedWeight, pack
from model.backends.weights import GPTQTensors
from model.contract.config import ModelConfig

_INT32_LIMIT = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class KernelShape:
    """The traits of a checkpoint that are compiled into its kernels.

    Attributes:
        device: the device that the kernels run on.
        dtype: dtype of the activations.
        cache_dtype: dtype of keys and values.
        num_heads: attention heads.
        head_dim: numbers of a head.
        rotary_dim: how many of them are rotated.
        hidden_size: numbers of a row of the residual stream.
        vocab_size: columns of the logits.
        block_size: tokens in a block of the cache.
        bits: bits of a GPTQ weight, or None.
        group_size: inputs that share a scale of it; -1 for all.
        packed_kinds: quantised weights that are not GPTQ's.
        has_windows: whether some layer reads the last positions only.
    """

    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    num_heads: int
    head_dim: int
    rotary_dim: int
    hidden_size: int
    vocab_size: int
    block_size: int
    bits: int | None = None
    group_size: int = -1
    packed_kinds: tuple[PackedKind, ...] = ()
    has_windows: bool = False

    @classmethod
    def of(
        cls, config: ModelConfig, device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> KernelShape:
        """Reads the shape from a checkpoint's numbers."""
        quantization = config.quantization
        return cls(
            device=device,
            dtype=dtype,
            cache_dtype=cache_dtype,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            rotary_dim=config.rotary_dim,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            block_size=block_size,
            bits=None if quantization is None else quantization.bits,
            group_size=-1 if quantization is None else quantization.group_size,
            has_windows=bool(config.attention_windows),
        )


class Draw:
    """Random numbers, the same each time.

    Args:
        shape: names the device that they are for.
        seed: starts the numbers.
        on_device: draw them there, as befits large tensors; else on the CPU, so that all devices get the same.
    """

    def __init__(self, shape: KernelShape, seed: int, *, on_device: bool = False) -> None:
        self._device = shape.device
        self._generator = torch.Generator(shape.device if on_device else "cpu").manual_seed(seed)

    def normal(self, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Draws from the normal distribution."""
        drawn = torch.randn(*size, generator=self._generator, device=self._generator.device)
        return drawn.to(dtype).to(self._device)

    def integers(self, low: int, high: int, *size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Draws integers from low to high - 1."""
        device = self._generator.device
        return torch.randint(low, high, size, generator=self._generator, dtype=dtype, device=device).to(self._device)

    def permutation(self, length: int) -> torch.Tensor:
        """Draws an order of 0 ... length - 1, int64."""
        return torch.randperm(length, generator=self._generator, device=self._generator.device).to(self._device)


class DrawnCache(NamedTuple):
    """One layer's keys and values, [2, num_heads, num_slots, head_dim], and their scales."""

    data: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def drawn(cls, draw: Draw, shape: KernelShape, num_slots: int) -> DrawnCache:
        """Draws a cache full of numbers."""
        size = (2, shape.num_heads, num_slots, shape.head_dim)
        if shape.cache_dtype != torch.int8:
            return cls(draw.normal(*size, dtype=shape.cache_dtype), None)
        scales = (draw.normal(*size[:3]).abs() + 1) / 127
        return cls(draw.integers(-127, 128, *size, dtype=torch.int8), scales)

    def numbers(self) -> torch.Tensor:
        """Returns what is stored, as float32."""
        return self.data.float() if self.scales is None else self.data.float() * self.scales[..., None]


def drawn_gptq_weight(
    draw: Draw, shape: KernelShape, num_inputs: int, num_outputs: int, *, is_plain: bool = True
) -> PackedWeight:
    """Draws a GPTQ weight [num_outputs, num_inputs] of the shape's bits and groups, 4 bits if it has none.

    Args:
        draw: the numbers.
        shape: the checkpoint's traits.
        num_inputs: a multiple of the numbers in a word.
        num_outputs: likewise.
        is_plain: whether all zeros are the middle of the range and groups consecutive.
    """
    bits = shape.bits or 4
    group_size = num_inputs if shape.group_size == -1 else shape.group_size
    num_groups, per_word = -(-num_inputs // group_size), 32 // bits

    def words(*size: int) -> torch.Tensor:
        return draw.integers(-_INT32_LIMIT, _INT32_LIMIT, *size, dtype=torch.int32)

    qweight, qzeros = words(num_inputs // per_word, num_outputs), words(num_groups, num_outputs // per_word)
    groups = torch.arange(num_inputs, device=shape.device) // group_size
    if is_plain:
        middle = (1 << (bits - 1)) - 1  # zeros are stored less one, so the word stays below 2 ** 31
        qzeros.fill_(sum(middle << (bits * place) for place in range(per_word)))
    else:
        groups = groups[draw.permutation(num_inputs)]
    scales = (draw.normal(num_groups, num_outputs).abs() / (1 << bits)).half()
    packed = pack(GPTQTensors(qweight, qzeros, scales, groups, bits))
    assert packed is not None
    return packed
