"""What each kernel is tried on: inputs of a small and an odd size, drawn anew from a fixed seed for each contestant.

What is compiled into a kernel (heads, dims, dtypes, tiles) is the checkpoint's own, so that the kernels that will serve
are the ones that are tried; the sizes that vary from step to step are small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from model.backends.base import GPTQTensors, GroupedWeight
from model.backends.cuda.gptq_layout import FINEST_GROUP, PackedKind, PackedWeight, pack, pack_grouped
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.backends.cuda.kernels.decode_inputs import AngleTables
from model.backends.cuda.kernels.matmul.gptq_matmul import MAX_ROWS_OF_TILES
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters
from model.backends.cuda.operations import Operation
from model.contract.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KernelShape:
    """What a checkpoint compiles into its kernels.

    Attributes:
        device: where they run.
        dtype: of activations.
        cache_dtype: of keys and values.
        num_heads: of the model.
        head_dim: of a head.
        rotary_dim: how many of its dims are rotated.
        hidden_size: of the residual stream.
        vocab_size: of the logits.
        block_size: tokens in a block of the cache.
        bits: of quantised weights, or None.
        group_size: of their groups; -1 for one group.
        packed_kinds: of quantised weights that are not GPTQ's.
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
        """Returns that of a checkpoint."""
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
    """Numbers that are the same each time.

    Args:
        shape: whose device they go to.
        seed: of the trial.
    """

    def __init__(self, shape: KernelShape, seed: int) -> None:
        self._device = shape.device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normally distributed."""
        return torch.randn(*size, generator=self._generator).to(dtype).to(self._device)

    def integers(self, low: int, high: int, *size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """From low to high - 1."""
        return torch.randint(low, high, size, generator=self._generator).to(dtype).to(self._device)

    def permutation(self, length: int) -> torch.Tensor:
        """Of 0 ... length - 1, int64."""
        return torch.randperm(length, generator=self._generator).to(self._device)


class Trial(NamedTuple):
    """How a kernel is tried.

    Attributes:
        run: calls it, or torch's operation, with inputs of a size; returns all that it made.
        sizes: first a small one.
    """

    run: Callable[[Any, KernelShape, int], list[torch.Tensor]]
    sizes: tuple[int, ...]


def _rms_norm(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    hidden, dtype = shape.hidden_size, shape.dtype
    weight = (draw.normal(hidden) / 4 + 1).to(dtype)
    residual = draw.normal(size, hidden)
    alone = operation(draw.normal(size, hidden), weight, 1e-6)
    delta = draw.normal(size, 2 * hidden, dtype=dtype)[:, :hidden]
    return [alone, operation(delta, weight, 1e-6, residual), residual]


def _silu_mul(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    both = Draw(shape, size).normal(size, 2 * (shape.hidden_size + 3), dtype=shape.dtype) * 3
    gate, up = both.chunk(2, -1)
    return [operation(gate, up)]


class _Cache(NamedTuple):
    """One layer's keys and values, [2, num_heads, num_slots, head_dim], and their scales."""

    data: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def drawn(cls, draw: Draw, shape: KernelShape, num_slots: int) -> _Cache:
        """A cache full of numbers."""
        size = (2, shape.num_heads, num_slots, shape.head_dim)
        if shape.cache_dtype != torch.int8:
            return cls(draw.normal(*size, dtype=shape.cache_dtype), None)
        scales = (draw.normal(*size[:3]).abs() + 1) / 127
        return cls(draw.integers(-127, 128, *size, dtype=torch.int8), scales)

    def numbers(self) -> torch.Tensor:
        """What is stored, as float32."""
        return self.data.float() if self.scales is None else self.data.float() * self.scales[..., None]


def _rotate_and_cache(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    cache = _Cache.drawn(draw, shape, 16)
    qkv = draw.normal(size, 3 * shape.num_heads * shape.head_dim, dtype=shape.dtype)
    angles = draw.normal(size, shape.rotary_dim // 2) * 9
    slots = draw.permutation(16)[:size]
    slots[1:2] = -1
    scale = draw.normal(size).abs()
    query = operation(qkv, angles.cos(), angles.sin(), scale, slots, cache.data, cache.scales)
    return [query, cache.numbers()]


def _decode_attention(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """One short context in one part; or several, one of them empty, one in more parts than are merged at once."""
    draw = Draw(shape, size)
    lengths = [5] if size == 1 else [1, 0, 299][:size]
    counts = [-(-length // shape.block_size) for length in lengths]
    cache = _Cache.drawn(draw, shape, (sum(counts) + 1) * shape.block_size)
    table = draw.permutation(sum(counts) + 1)[: sum(counts)].to(torch.int32)
    starts = [sum(counts[:i]) for i in range(size)]
    rows = list(range(size))[::-1]
    numbers = [torch.tensor(x, dtype=torch.int32, device=shape.device) for x in (rows, lengths, starts)]
    query = (draw.normal(size, shape.num_heads, shape.head_dim) / shape.head_dim**0.5).to(shape.dtype)
    decodes = DecodeRows(numbers[0], numbers[1], numbers[2], table)
    options: dict[str, int] = {"block_size": shape.block_size, "num_splits": 1 if size == 1 else 20}
    outs = []
    for window in (0, 3, 70) if shape.has_windows else (0,):
        outs.append(torch.full_like(query, float("nan")))
        operation(query, *cache, decodes, outs[-1], window=window, **options)
    return outs


def _prefill_attention(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """A chunk at the start of its sequence, and one of an odd length behind others."""
    draw = Draw(shape, size)
    chunks = [(0, size), (21, 3)]  # position, rows
    counts = [-(-(position + rows) // shape.block_size) for position, rows in chunks]
    cache = _Cache.drawn(draw, shape, sum(counts) * shape.block_size)
    table = draw.permutation(sum(counts)).to(torch.int32)
    block_rows = choose_block_rows(shape.dtype, size)
    records = tile_records([(0, *chunks[0], 0), (size, *chunks[1], counts[0])], block_rows)
    tiles = PrefillTiles(torch.tensor(records, dtype=torch.int32, device=shape.device), table, block_rows)
    query = (draw.normal(size + 3, shape.num_heads, shape.head_dim) / shape.head_dim**0.5).to(shape.dtype)
    outs = []
    for window in (0, 3, 70) if shape.has_windows else (0,):
        outs.append(torch.full_like(query, float("nan")))
        operation(query, *cache, tiles, outs[-1], block_size=shape.block_size, window=window)
    return outs


def _make_decode_inputs(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """The first token of a row is known, the next ones are of the step before, the third row is unused."""
    draw = Draw(shape, size)
    half = shape.rotary_dim // 2
    angles = AngleTables(draw.normal(2, 50, half), draw.normal(2, 50, half), draw.normal(50))
    rows = [(7, 20, 1, 0), (-3, 41, 0, 50), (0, -1, 0, 0)][:size]
    fields = torch.tensor(rows, dtype=torch.int32, device=shape.device)
    table = draw.permutation(100).to(torch.int32)
    inputs = operation(fields, table, draw.integers(0, 90, 5), angles, shape.block_size)
    is_used = inputs.lengths > 0
    return [*inputs[:3], *(part[is_used] for part in inputs[3:])]


def _row_matmul(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    inputs = shape.hidden_size + (0 if size % 8 == 0 else 5)
    weight = (draw.normal(size, inputs) / inputs**0.25).to(shape.dtype)
    x = (draw.normal(4, inputs) / inputs**0.25).to(shape.dtype)
    bias = draw.normal(size, dtype=shape.dtype)
    few = [operation(x[:num_rows], weight, bias) for num_rows in (1, 2, 4)]
    return [operation(x[:1], weight, None, torch.float32), *few]


def _add_low_rank(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    hidden, rank, num_slots = shape.hidden_size, 16, 3
    results = []
    for num_parts, num_outputs in ((3, 3 * hidden), (1, hidden + 8)):
        x, out = (draw.normal(size, n, dtype=shape.dtype) for n in (hidden, num_outputs))
        a = draw.normal(num_slots, num_parts * rank, hidden) / hidden**0.5
        b = draw.normal(num_slots, num_outputs, rank) / rank**0.5
        slots = draw.integers(-1, num_slots, size, dtype=torch.int32)
        results.append(operation(out, x, slots, a.to(shape.dtype), b.to(shape.dtype)))
    return results


def _tile_matmul(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    inputs = shape.hidden_size + (0 if size % 8 == 0 else 5)
    x, weight = (draw.normal(n, inputs) / inputs**0.25 for n in (size, 70))
    x, weight, bias = x.to(shape.dtype), weight.to(shape.dtype), draw.normal(70, dtype=shape.dtype)
    return [operation(x, weight, None, torch.float32), operation(x, weight, bias)]


# A share whose middle no sum in float32 misses.
_LEAST_SHARE = 1e-3
# Temperature, top_k, top_p, min_p.
_SAMPLING = ((0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 20, 0.9, 0.0), (1.5, 0, 0.6, 0.05))


def _sample_rows(operation: Operation | None, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """Each draw falls in the middle of a token's share, so that rounding decides nothing.

    Size 0 is the checkpoint's vocabulary. With no operation it tells the tokens that are right.
    """
    draw = Draw(shape, size)
    logits = draw.normal(len(_SAMPLING), size or shape.vocab_size) * 3
    picks = [_middle_of_a_share(row, *how) for row, how in zip(logits, _SAMPLING, strict=True)]
    tokens, draws = zip(*picks, strict=True)
    if operation is None:
        return [torch.tensor(tokens, device=shape.device), torch.ones(len(tokens), device=shape.device)]
    temperature, top_k, top_p, min_p = (
        torch.tensor(column, dtype=torch.float32, device=shape.device)
        for column in zip(*_SAMPLING, strict=True)
    )
    filters = RowFilters(
        temperature, top_k.int(), top_p, min_p, torch.tensor(draws, dtype=torch.float32, device=shape.device)
    )
    return list(operation(logits, filters))


def _middle_of_a_share(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[int, float]:
    """A token that the filters keep, and the draw that picks it: the second likeliest, if its share is not tiny."""
    if temperature == 0:
        return int(logits.argmax()), 0.0
    probs = (logits.double().cpu() / temperature).softmax(-1)
    values, order = probs.sort(descending=True)
    if top_k:
        values[top_k:] = 0
    before = values.cumsum(0) - values
    values[before >= top_p * values.sum()] = 0
    values[values < min_p * values[0]] = 0
    kept = torch.zeros_like(probs).scatter_(0, order, values)
    token = int(order[1 if values[1] > _LEAST_SHARE * values.sum() else 0])
    before_token = float(kept[:token].sum())
    return token, (before_token + float(kept[token]) / 2) / float(kept.sum())


def _gptq(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """So many rows; below 0 with zeros and an order of groups that are not trivial, and a bias."""
    draw = Draw(shape, abs(size))
    weights = [_drawn_grouped(draw, shape, kind) for kind in shape.packed_kinds]
    if shape.bits is not None or not weights:
        weights.append(_drawn_weight(draw, shape, is_plain=size > 0))
    results = []
    for weight in weights:
        x = draw.normal(abs(size), weight.in_features, dtype=shape.dtype)
        bias = None if size > 0 else draw.normal(weight.out_features, dtype=shape.dtype)
        results.append(operation(x, weight, bias))
    return results


def _drawn_grouped(draw: Draw, shape: KernelShape, kind: PackedKind) -> PackedWeight:
    size = 128 if kind.group_size == -1 else kind.group_size
    num_groups = 1 if kind.group_size == -1 else max(3, -(-160 // size))
    num_outputs = 72
    values = draw.integers(0, 1 << kind.bits, num_outputs, size * num_groups, dtype=torch.uint8)
    scales = draw.normal(num_outputs, num_groups).abs() / (1 << kind.bits)
    offsets = draw.normal(num_outputs, num_groups) if kind.has_offsets else None
    codes = draw.normal(16) * 8 if kind.has_codes else None
    packed = pack_grouped(GroupedWeight(values, scales, offsets, kind.bits, 1 << (kind.bits - 1), codes))
    assert packed is not None
    return packed


def _drawn_weight(draw: Draw, shape: KernelShape, *, is_plain: bool) -> PackedWeight:
    bits = shape.bits or 4
    group_size = 128 if shape.group_size == -1 else shape.group_size
    num_groups = 1 if shape.group_size == -1 else max(3, -(-160 // group_size))
    num_inputs, num_outputs = group_size * num_groups, 72
    per_word = 32 // bits
    limit = 1 << 31
    qweight = draw.integers(-limit, limit, num_inputs // per_word, num_outputs, dtype=torch.int32)
    qzeros = draw.integers(-limit, limit, num_groups, num_outputs // per_word, dtype=torch.int32)
    groups = torch.arange(num_inputs, device=shape.device) // group_size
    if is_plain:
        middle = (1 << (bits - 1)) - 1  # zeros are stored less one
        word = sum(middle << (bits * place) for place in range(per_word))
        qzeros.fill_(word - (1 << 32) if word >= limit else word)
    else:
        groups = groups[draw.permutation(num_inputs)]
    scales = (draw.normal(num_groups, num_outputs).abs() / (1 << bits)).half()
    packed = pack(GPTQTensors(qweight, qzeros, scales, groups, bits))
    assert packed is not None
    return packed


TRIALS: dict[str, Trial] = {
    "rms_norm": Trial(_rms_norm, (1, 5)),
    "silu_mul": Trial(_silu_mul, (1, 5)),
    "rotate_and_cache": Trial(_rotate_and_cache, (1, 5)),
    "decode_attention": Trial(_decode_attention, (1, 3)),
    # One for each tile there is.
    "prefill_attention": Trial(_prefill_attention, (5, 33, 100)),
    "make_decode_inputs": Trial(_make_decode_inputs, (1, 3)),
    "sample_rows": Trial(_sample_rows, (300, 0)),
    "row_matmul": Trial(_row_matmul, (24, 37)),
    "add_low_rank": Trial(_add_low_rank, (1, 5)),
    "tile_matmul": Trial(_tile_matmul, (8, 19)),
    "gptq_one_row": Trial(_gptq, (1, -1)),
    # One for each tile there is.
    "gptq_few_rows": Trial(_gptq, (2, 12, -19, 40, 70)),
    "gptq_many_rows": Trial(_gptq, (MAX_ROWS_OF_TILES + 2, -MAX_ROWS_OF_TILES - 1)),
}


def trials_for(shape: KernelShape) -> dict[str, Trial]:
    """The trials of the kernels that a checkpoint runs."""
    has_gptq = shape.bits is not None and (shape.group_size == -1 or shape.group_size % FINEST_GROUP == 0)
    has_packed = has_gptq or bool(shape.packed_kinds)
    return {name: trial for name, trial in TRIALS.items() if has_packed or not name.startswith("gptq")}
