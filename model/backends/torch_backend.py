"""Plain torch operations: the CPU path, and the reference that every kernel of our own is tested against.

What decides its shape was measured on a 2-core AVX-512 machine (benchmarks/decode.py):
- bf16 and quantised weights are multiplied by kernels of our own (cpu/), which read memory at its full speed for up
  to 6 rows and are level with oneDNN beyond; a float32 weight packed once for oneDNN gains a quarter over F.linear
  from 4 rows on and loses a few microseconds at one;
- for one query row, copying a run of bf16 keys to float32 and multiplying there takes three quarters of the time
  that torch's bf16 bmm takes on the cache in place, and is more exact;
- for a chunk, torch's flash kernel returns the log-sum-exp too, so parts of a context (cached prefix, own chunk,
  separate runs of blocks) are attended one by one and merged, with no mask and no gathered copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.backends.base import GPTQTensors, LinearKernel
from model.backends.cpu.gptq_linear import make_gptq_linear
from model.backends.cpu.packed_linear import make_bfloat16_linear
from model.backends.huge_pages import use_huge_pages
from model.backends.memory import available_cpu_bytes
from model.errors import ConfigError
from model.forward_batch import ForwardBatch, SequenceSpan
from model.kv_cache import KVCache

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Unless told otherwise a laptop's cache takes at most this much.
_DEFAULT_MAX_CPU_CACHE_BYTES = 4 << 30

_SMALL_MODEL_BYTES = 128 << 20

# A decode reads its context in pieces of at most this many tokens; shorter ones cost more calls than they save.
_DECODE_RUN_TOKENS = 1024

# oneDNN lays a packed weight out for some expected number of rows; measured flat between 1 and 64.
_PACK_ROWS_HINT = 16


@dataclass(frozen=True, slots=True)
class _SequencePlan:
    """One sequence of a step: its rows, and views of its cached keys and values in every layer.

    Attributes:
        first_row: its rows in the batch are `first_row` up to `first_row + num_tokens`.
        start: position of the first new token.
        runs: for each run of consecutive blocks, and there for each layer, views of its keys (transposed,
            [num_heads, head_dim, run_tokens]) and values ([num_heads, run_tokens, head_dim]). For a decode they
            cover the new token too; for a chunk only what was cached before it.
    """

    first_row: int
    num_tokens: int
    start: int
    runs: list[list[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all layers of a step share.

    Attributes:
        sequences: in row order.
        layers: each layer's cache, [2, num_heads, num_slots, head_dim].
        cos: [T, 2, 1, head_dim] float32, for queries (scaled) and keys; 1 where nothing is rotated.
        sin: the same shape, the sign of the halves layout in it; 0 where nothing is rotated.
    """

    sequences: list[_SequencePlan]
    layers: tuple[torch.Tensor, ...]
    cos: torch.Tensor
    sin: torch.Tensor


class TorchBackend:
    """Implements `Backend` with torch alone.

    Args:
        device: usually the CPU; on a CUDA device it is slow but right.
    """

    name = "torch"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._can_pack = device.type == "cpu" and _packed_linear_works()
        self._scratch = torch.empty(0, device=device)
        self._epsilons: dict[float, torch.Tensor] = {}

    def resolve_dtype(self, requested: str, declared: str | None) -> torch.dtype:
        """See `Backend`. float16 weights on a CPU run as bfloat16: CPUs have no fast float16 products."""
        if requested != "auto":
            return require_known_dtype(requested)
        if self.device.type == "cpu":
            has_fast_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
            if declared == "float32" or not has_fast_bf16:
                return torch.float32
            return torch.bfloat16
        if declared is not None:
            return _DTYPES[declared]
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    def available_memory_bytes(self, gpu_memory_utilization: float) -> int:
        """See `Backend`. On a CPU half of what is available, at most 4 GiB; on a GPU its share less what is taken."""
        if self.device.type == "cpu":
            return min(available_cpu_bytes() // 2, _DEFAULT_MAX_CPU_CACHE_BYTES)
        free, total = torch.cuda.mem_get_info(self.device)
        return max(0, int(total * gpu_memory_utilization) - (total - free))

    def set_num_threads(self, num_threads: int | None, weights_bytes: int) -> None:
        """See `Backend`. All cores; but one for small models, whose threads would wait more than they work.

        Measured with 64 streams of the 13 MB demo on two cores: 2,729 tokens/s with one thread, which leaves the other
        core to the HTTP process, and 2,190 at best with two.
        """
        if num_threads is None and weights_bytes < _SMALL_MODEL_BYTES:
            num_threads = 1
        if num_threads is not None:
            torch.set_num_threads(num_threads)

    def default_max_num_batched_tokens(self) -> int:
        """See `Backend`. A CPU prefills 512 tokens in seconds; more would stall the streams beside it."""
        return 512 if self.device.type == "cpu" else 4096

    def prepare_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool = False
    ) -> LinearKernel:
        """See `Backend`. bfloat16 by kernels of our own, or as float32 by oneDNN; else by F.linear."""
        if self.device.type == "cpu" and weight.dtype == torch.bfloat16:
            packed_linear = make_bfloat16_linear(weight, bias, wide_results=wide_results)
            if packed_linear is not None:
                return packed_linear
        if not (self._can_pack and weight.dtype in (torch.bfloat16, torch.float32)):
            return lambda x: F.linear(x, weight, bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS_HINT)
        use_huge_pages(torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed))
        linear = torch.ops.mkldnn._linear_pointwise.default

        def apply(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = linear(x, packed, bias, "none", [], "")
            return out

        return apply

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. On a CPU the kernels of our own where they serve; else the caller expands the weight."""
        if self.device.type != "cpu":
            return None
        return make_gptq_linear(weight, bias, dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Backend`."""
        # F.rms_norm is eight small operations here and takes 90 us for one row; this takes 30.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self._epsilon(epsilon), norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
        return torch.mul(x, scale).to(weight.dtype).mul_(weight)

    def _epsilon(self, epsilon: float) -> torch.Tensor:
        tensor = self._epsilons.get(epsilon)
        if tensor is None:
            tensor = self._epsilons[epsilon] = torch.tensor(epsilon, dtype=torch.float32, device=self.device)
        return tensor

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        return F.silu(gate).mul_(up)

    def plan_attention(self, batch: ForwardBatch, cache: KVCache) -> _Plan:
        """See `Backend`."""
        sequences = []
        row = 0
        for span in batch.spans:
            if span.num_tokens == 1:
                ranges = _split(slot_runs(span, span.context_len, batch.block_size), _DECODE_RUN_TOKENS)
            else:
                ranges = slot_runs(span, span.start, batch.block_size)
            runs = [_views(cache.data[:, :, :, low:high]) for low, high in ranges]
            sequences.append(_SequencePlan(row, span.num_tokens, span.start, runs))
            row += span.num_tokens
        self._reserve_scratch(cache.data)
        return _Plan(sequences, cache.data.unbind(0), *rotation(batch, cache.data.shape[-1]))

    def _reserve_scratch(self, data: torch.Tensor) -> None:
        num_elements = 0 if data.dtype == torch.float32 else data.shape[2] * _DECODE_RUN_TOKENS * data.shape[4]
        if self._scratch.numel() < num_elements:
            self._scratch = torch.empty(num_elements, dtype=torch.float32, device=self.device)

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: _Plan) -> torch.Tensor:
        """See `Backend`."""
        cache = plan.layers[layer]
        _, num_heads, _, head_dim = cache.shape
        num_tokens = qkv.shape[0]
        qkv = qkv.view(num_tokens, 3, num_heads, head_dim)
        rotated = rotate(qkv[:, :2], plan.cos, plan.sin, 2 * batch.cos.shape[-1])
        qkv[:, :2] = rotated  # rounded to the activations' type; the linear's result is nobody else's
        cache.index_copy_(2, batch.slots, qkv[:, 1:].permute(1, 2, 0, 3))
        out = torch.empty(num_tokens, num_heads, head_dim, dtype=torch.float32, device=qkv.device)
        # All rows' views in two calls: with 64 short sequences the views cost as much as the arithmetic.
        query_rows, out_rows = rotated[:, 0].unsqueeze(2).unbind(0), out.unsqueeze(2).unbind(0)
        for sequence in plan.sequences:
            first = sequence.first_row
            runs = [run[layer] for run in sequence.runs]
            if sequence.num_tokens == 1:
                _attend_one(query_rows[first], runs, out_rows[first], self._scratch)
            else:
                rows = slice(first, first + sequence.num_tokens)
                q, k, v = qkv[rows].unbind(1)
                _attend_chunk(q, k, v, runs, out[rows])
        return out.to(qkv.dtype).view(num_tokens, num_heads * head_dim)


def rotation(batch: ForwardBatch, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What queries and keys of a step are multiplied with, in the halves layout.

    Args:
        batch: `cos` and `sin` of [T, rotary_dim / 2], and `query_scale`.
        head_dim: of the cache; dims past `rotary_dim` are not rotated, but queries are scaled.

    Returns:
        cos and signed sin, both [T, 2, 1, head_dim] float32; index 0 of the second dimension is for queries.
    """
    num_tokens, half = batch.cos.shape
    cos = batch.cos.new_ones(num_tokens, 2, 1, head_dim)
    sin = batch.cos.new_zeros(num_tokens, 2, 1, head_dim)
    cos[..., :half] = cos[..., half : 2 * half] = batch.cos[:, None, None]
    sin[..., :half], sin[..., half : 2 * half] = -batch.sin[:, None, None], batch.sin[:, None, None]
    scale = batch.query_scale[:, None, None]
    cos[:, 0] *= scale
    sin[:, 0] *= scale
    return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Rotary embedding in float32, queries and keys together.

    Args:
        x: [T, 2, num_heads, head_dim].
        cos: see `rotation`.
        sin: likewise.
        rotary_dim: how many of the dims are rotated.

    Returns:
        [T, 2, num_heads, head_dim] float32.
    """
    half = rotary_dim // 2
    x = x.float()
    swapped = torch.cat((x[..., half:rotary_dim], x[..., :half], x[..., rotary_dim:]), -1)
    return torch.mul(x, cos).addcmul_(swapped, sin)


def slot_runs(span: SequenceSpan, num_positions: int, block_size: int) -> list[tuple[int, int]]:
    """The slots of a sequence's first positions, as few ranges as its block numbers allow.

    Args:
        span: whose block table.
        num_positions: how many positions to cover.
        block_size: tokens in a block.

    Returns:
        (first slot, end slot) pairs in position order; empty when there is nothing to cover.
    """
    if num_positions <= 0:
        return []
    table = span.block_table
    num_blocks = -(-num_positions // block_size)
    runs = []
    first = previous = table[0]
    for block in table[1:num_blocks]:
        if block != previous + 1:
            runs.append((first * block_size, (previous + 1) * block_size))
            first = block
        previous = block
    unused = num_blocks * block_size - num_positions
    runs.append((first * block_size, (previous + 1) * block_size - unused))
    return runs


def _split(ranges: list[tuple[int, int]], max_tokens: int) -> list[tuple[int, int]]:
    """Cuts ranges of slots into pieces of at most `max_tokens`."""
    return [(start, min(start + max_tokens, high)) for low, high in ranges for start in range(low, high, max_tokens)]


def _views(data: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Splits [num_layers, 2, num_heads, run_tokens, head_dim] into each layer's transposed keys and values."""
    keys, values = data.unbind(1)
    return list(zip(keys.transpose(2, 3).unbind(0), values.unbind(0), strict=True))


def _attend_one(
    query: torch.Tensor, runs: list[tuple[torch.Tensor, torch.Tensor]], out: torch.Tensor, scratch: torch.Tensor
) -> None:
    """One query row over cached keys, its own included; scores, softmax and sums in float32.

    Args:
        query: [num_heads, 1, head_dim] float32, scaled.
        runs: transposed keys [num_heads, head_dim, run_tokens] and values [num_heads, run_tokens, head_dim],
            run_tokens at most `_DECODE_RUN_TOKENS`.
        out: [num_heads, 1, head_dim] float32, written.
        scratch: float32, room for one run's keys.
    """
    if len(runs) == 1:
        keys, values = runs[0]
        scores = torch.bmm(query, _as_float32(keys.transpose(1, 2), scratch).transpose(1, 2))
        torch.bmm(torch.softmax(scores, -1), _as_float32(values, scratch), out=out)
        return
    parts = [torch.bmm(query, _as_float32(keys.transpose(1, 2), scratch).transpose(1, 2)) for keys, _ in runs]
    probs = torch.softmax(torch.cat(parts, dim=2), -1)
    first = 0
    for _, values in runs:
        end = first + values.shape[1]
        part = torch.bmm(probs[:, :, first:end], _as_float32(values, scratch))
        out = out.add_(part) if first else out.copy_(part)
        first = end


def _as_float32(data: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is float32, else a float32 copy in the scratch space."""
    if data.dtype == torch.float32:
        return data
    return scratch[: data.numel()].view(data.shape).copy_(data)


def _attend_chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    runs: list[tuple[torch.Tensor, torch.Tensor]],
    out: torch.Tensor,
) -> None:
    """A chunk's queries over its own keys (causal) and over the keys cached before it.

    Args:
        q: [num_tokens, num_heads, head_dim], scaled.
        k: the same shape.
        v: the same shape.
        runs: cached keys [num_heads, head_dim, run_tokens] and values [num_heads, run_tokens, head_dim]; may be empty.
        out: [num_tokens, num_heads, head_dim] float32, written.
    """
    query = q.transpose(0, 1)[None]
    total, log_total = _flash(query, k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True)
    if runs:
        total = total.float()
        for keys, values in runs:
            part, log_part = _flash(query, keys.transpose(1, 2)[None], values[None], is_causal=False)
            merged = torch.logaddexp(log_total, log_part)
            total = total * (log_total - merged).exp()[..., None] + part.float() * (log_part - merged).exp()[..., None]
            log_total = merged
    out.copy_(total[0].transpose(0, 1))


def _flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [1, num_heads, T, head_dim] with scale 1, and the log-sum-exp [1, num_heads, T] float32."""
    if query.device.type == "cpu":
        out, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, is_causal, attn_mask=None, scale=1.0
        )
        return out, log_sum_exp
    scores = torch.matmul(query.float(), keys.float().transpose(-1, -2))
    if is_causal:
        length = scores.shape[-1]
        above = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(above, float("-inf"))
    log_sum_exp = scores.logsumexp(-1)
    probs = (scores - log_sum_exp[..., None]).exp()
    return torch.matmul(probs, values.float()).to(query.dtype), log_sum_exp


def _packed_linear_works() -> bool:
    """Whether torch still has the oneDNN operators we pack with (they are private) and they give F.linear's result."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(48, 32, generator=generator).bfloat16()
        x = torch.randn(3, 32, generator=generator).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS_HINT)
        result = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return torch.allclose(result.float(), F.linear(x, weight).float(), rtol=1e-2, atol=1e-2)
    except (AttributeError, RuntimeError, TypeError):
        return False


def require_known_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype of a name the settings allow.

    Raises:
        ConfigError: unknown name.
    """
    if name not in _DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
