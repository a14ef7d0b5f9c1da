"""The reference backend against plain float64 arithmetic, with everything a batch can mix."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
import torch.nn.functional as F

from model.backends import make_backend
from model.backends.torch_backend import TorchBackend, require_known_dtype
from model.contract.config import ModelConfig
from model.contract.errors import ConfigError
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache, allocate_kv_cache, kv_cache_block_bytes

CPU = torch.device("cpu")
NUM_HEADS = 3
NUM_LAYERS = 2

CONFIG = ModelConfig(
    vocab_size=100,
    hidden_size=NUM_HEADS * 16,
    num_layers=NUM_LAYERS,
    num_heads=NUM_HEADS,
    head_dim=16,
    intermediate_size=8,
    seq_length=20,
    rotary_base=10000.0,
    rotary_dim=16,
    layer_norm_epsilon=1e-6,
    use_dynamic_ntk=True,
    use_logn_attn=True,
    has_bias=False,
    declared_dtype=None,
    quantization=None,
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(CPU)


class RandomSequence:
    """Queries, keys and values of a whole sequence, and what attention over all of it gives in float64."""

    def __init__(self, config: ModelConfig, length: int, alpha: float, table: list[int], dtype: torch.dtype) -> None:
        self.alpha = alpha
        self.table = table
        self.length = length
        self.num_done = 0
        self.qkv = torch.randn(NUM_LAYERS, length, 3 * NUM_HEADS * config.head_dim).to(dtype)
        windows = config.attention_windows or (0,) * NUM_LAYERS
        self.expected = torch.stack(
            [naive_attention(layer, alpha, config, window) for layer, window in zip(self.qkv, windows, strict=True)]
        )

    def span(self, num_tokens: int) -> SequenceSpan:
        return SequenceSpan([0] * num_tokens, self.num_done, self.alpha, self.table, 1)


def naive_attention(qkv: torch.Tensor, alpha: float, config: ModelConfig, window: int = 0) -> torch.Tensor:
    """[T, 3 * heads * head_dim] to [T, heads * head_dim] in float64, token by token, as QWEN.md section 2 says it."""
    length, dim, rotary_dim = len(qkv), config.head_dim, config.rotary_dim
    q, k, v = qkv.double().view(length, 3, NUM_HEADS, dim).unbind(1)
    base = config.rotary_base * alpha ** (rotary_dim / (rotary_dim - 2))
    out = torch.empty(length, NUM_HEADS, dim, dtype=torch.float64)

    def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
        x = x.clone()
        half = rotary_dim // 2
        for i in range(half):
            angle = position / base ** (2 * i / rotary_dim)
            x1, x2 = x[:, i].clone(), x[:, half + i].clone()
            x[:, i] = x1 * math.cos(angle) - x2 * math.sin(angle)
            x[:, half + i] = x2 * math.cos(angle) + x1 * math.sin(angle)
        return x

    keys = torch.stack([rotated(k[p], p) for p in range(length)])
    for p in range(length):
        query = rotated(q[p], p)
        if config.use_logn_attn and p + 1 > config.seq_length:
            query = query * (math.log(p + 1) / math.log(config.seq_length))
        seen = slice(max(0, p + 1 - window) if window else 0, p + 1)
        scores = torch.einsum("hd,phd->hp", query, keys[seen]) / math.sqrt(dim)
        out[p] = torch.einsum("hp,phd->hd", scores.softmax(-1), v[seen])
    return out.flatten(1)


def nan_cache(config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
    """A cache of NaNs: whoever reads a slot that was never written gets one."""
    cache = allocate_kv_cache(config, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=CPU)
    cache.data.fill_(math.nan)
    return cache


def run_step(
    backend: TorchBackend,
    config: ModelConfig,
    cache: KVCache,
    chunks: list[tuple[RandomSequence, int]],
    tolerance: float,
) -> None:
    batch = ForwardBatch.build([seq.span(n) for seq, n in chunks], config, cache.block_size, CPU)
    plan = backend.plan_attention(batch, cache)
    for layer in range(NUM_LAYERS):
        qkv = torch.cat([seq.qkv[layer, seq.num_done : seq.num_done + n] for seq, n in chunks])
        out = backend.attention(qkv, layer, batch, plan)
        expected = torch.cat([seq.expected[layer, seq.num_done : seq.num_done + n] for seq, n in chunks])
        assert out.dtype == qkv.dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for seq, n in chunks:
        seq.num_done += n


def deal_blocks(rng: random.Random, lengths: list[int], block_size: int, num_blocks: int) -> list[list[int]]:
    """Block tables in runs of random lengths, in random order; the last block number is left out."""
    numbers = list(range(num_blocks - 1))
    if rng.random() < 0.7:
        cuts = sorted(rng.sample(range(len(numbers)), rng.choice([3, 10, len(numbers) // 2])))
        pieces = [numbers[a:b] for a, b in zip([0, *cuts], [*cuts, len(numbers)], strict=True)]
        rng.shuffle(pieces)
        numbers = [n for piece in pieces for n in piece]
    tables = []
    for length in lengths:
        count = -(-length // block_size)
        tables.append(numbers[:count])
        del numbers[:count]
    return tables


@pytest.mark.parametrize("seed", range(24))
def test_random_mixes(backend: TorchBackend, seed: int) -> None:
    """Sequences advance by random chunks and decodes in random company until all are done."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = [torch.float32, torch.bfloat16, torch.float32, torch.float16][seed % 4]
    config = dataclasses.replace(
        CONFIG, rotary_dim=rng.choice([16, 16, 8, 4]), use_logn_attn=rng.random() < 0.8, seq_length=rng.choice([5, 20])
    )
    # In every third mix; drawn apart, so that the others stay what they are.
    windows = [(), (), (3, 24), (), (), (17, 0)][seed % 6]
    config = dataclasses.replace(config, attention_windows=windows)
    block_size = rng.choice([1, 4, 16])
    lengths = [rng.choice([1, 2, rng.randrange(1, 60)]) for _ in range(rng.randrange(1, 6))]
    num_blocks = sum(-(-n // block_size) for n in lengths) + 12
    cache = nan_cache(config, num_blocks, block_size, dtype)
    tables = deal_blocks(rng, lengths, block_size, num_blocks)
    sequences = [
        RandomSequence(config, length, rng.choice([1.0, 3.0, 7.0]), table, dtype)
        for length, table in zip(lengths, tables, strict=True)
    ]
    while alive := [seq for seq in sequences if seq.num_done < seq.length]:
        chunks = [
            (seq, min(seq.length - seq.num_done, rng.choice([1, 1, 1, 2, rng.randrange(1, 30)])))
            for seq in rng.sample(alive, rng.randrange(1, len(alive) + 1))
        ]
        run_step(backend, config, cache, chunks, TOLERANCE[dtype])
    written = ~cache.data.isnan().any(-1).any(0).any(0).any(0)
    own = {
        table[p // block_size] * block_size + p % block_size
        for table, length in zip(tables, lengths, strict=True)
        for p in range(length)
    }
    assert set(written.nonzero()[:, 0].tolist()) == own, "a step writes its own slots only"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_fragmented", [False, True])
def test_a_long_context(backend: TorchBackend, dtype: torch.dtype, is_fragmented: bool) -> None:
    """Longer than whatever pieces a backend may read a context in; one decode and one chunk at its end."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, num_layers=NUM_LAYERS, seq_length=2000)
    length = 2600
    blocks = list(range(200))
    if is_fragmented:
        blocks = blocks[60:] + blocks[:60]
    cache = nan_cache(config, 200, 16, dtype)
    seq = RandomSequence.__new__(RandomSequence)
    seq.alpha, seq.table, seq.length, seq.num_done = 3.0, blocks, length, 0
    seq.qkv = torch.randn(NUM_LAYERS, length, 3 * NUM_HEADS * config.head_dim).to(dtype)
    first = 2590
    seq.expected = torch.stack([_last_rows(layer, 3.0, config, first) for layer in seq.qkv])
    batch = ForwardBatch.build([seq.span(first)], config, 16, CPU)
    plan = backend.plan_attention(batch, cache)
    for layer in range(NUM_LAYERS):
        backend.attention(seq.qkv[layer, :first], layer, batch, plan)
    seq.num_done = first
    run_step(backend, config, cache, [(seq, 1)], TOLERANCE[dtype])
    run_step(backend, config, cache, [(seq, 8)], TOLERANCE[dtype])
    run_step(backend, config, cache, [(seq, 1)], TOLERANCE[dtype])


def _last_rows(qkv: torch.Tensor, alpha: float, config: ModelConfig, first: int) -> torch.Tensor:
    """Like `naive_attention`, vectorised; zeros before row `first`."""
    length, half = len(qkv), config.rotary_dim // 2
    q, k, v = qkv.double().view(length, 3, NUM_HEADS, config.head_dim).unbind(1)
    base = config.rotary_base * alpha ** (config.rotary_dim / (config.rotary_dim - 2))
    inverse = base ** (-torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None, None] * inverse

    def rotated(x: torch.Tensor) -> torch.Tensor:
        x1, x2 = x[..., :half], x[..., half:]
        return torch.cat([x1 * angles.cos() - x2 * angles.sin(), x2 * angles.cos() + x1 * angles.sin()], -1)

    q, k = rotated(q), rotated(k)
    logn = (torch.arange(1, length + 1).double().log() / math.log(config.seq_length)).clamp_min(1.0)
    out = torch.zeros(length, NUM_HEADS, config.head_dim, dtype=torch.float64)
    for p in range(first, length):
        scores = torch.einsum("hd,phd->hp", q[p] * logn[p], k[: p + 1]) / math.sqrt(config.head_dim)
        out[p] = torch.einsum("hp,phd->hd", scores.softmax(-1), v[: p + 1])
    return out.flatten(1)


@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_scores_far_apart(backend: TorchBackend, num_tokens: int) -> None:
    """A softmax that overflowed or a merge that divided by zero would show here."""
    torch.manual_seed(1)
    cache = nan_cache(CONFIG, 20, 4, torch.float32)
    seq = RandomSequence(CONFIG, 40, 1.0, [3, 4, 9, 8, 0, 1, 2, 15, 17, 11], torch.float32)
    seq.qkv *= 30
    seq.expected = torch.stack([naive_attention(layer, 1.0, CONFIG) for layer in seq.qkv])
    run_step(backend, CONFIG, cache, [(seq, 40 - num_tokens)], 1e-3)
    run_step(backend, CONFIG, cache, [(seq, num_tokens)], 1e-3)


def test_the_result_does_not_depend_on_neighbours(backend: TorchBackend) -> None:
    """Bit for bit: a decode and a chunk alone, and the same between others."""
    torch.manual_seed(2)
    tables = [[1, 2, 3], [7, 5, 6], [10, 11, 12], [9, 8, 0]]
    alphas = [1.0, 3.0, 7.0, 1.0]

    def run(which: list[int]) -> dict[int, torch.Tensor]:
        cache = nan_cache(CONFIG, 13, 8, torch.float32)
        outs = {}
        for lengths in ([11, 9, 14, 3], [1, 6, 1, 5]):
            starts = [0, 0, 0, 0] if lengths[0] == 11 else [11, 9, 14, 3]
            spans = [SequenceSpan([0] * lengths[i], starts[i], alphas[i], tables[i], 1) for i in which]
            batch = ForwardBatch.build(spans, CONFIG, 8, CPU)
            plan = backend.plan_attention(batch, cache)
            qkv = torch.cat([inputs[i][starts[i] : starts[i] + lengths[i]] for i in which])
            out = backend.attention(qkv, 1, batch, plan)
            outs = dict(zip(which, out.split([lengths[i] for i in which]), strict=True))
        return outs

    inputs = [torch.randn(20, 3 * NUM_HEADS * 16) for _ in range(4)]
    together = run([2, 0, 3, 1])
    for i in range(4):
        assert torch.equal(run([i])[i], together[i])


# --- the other operations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 16, 65])
def test_linear(backend: TorchBackend, dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    torch.manual_seed(3)
    weight = (torch.randn(200, 136) / 12).to(dtype)
    bias = torch.randn(200).to(dtype) if has_bias else None
    x = torch.randn(num_rows, 136).to(dtype)
    kernel = backend.prepare_linear(weight.clone(), bias)
    out = kernel(x)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out, F.linear(x, weight, bias), rtol=tolerance, atol=tolerance)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def test_linear_of_rows_that_are_a_view(backend: TorchBackend) -> None:
    torch.manual_seed(4)
    weight = torch.randn(64, 32).bfloat16()
    x = torch.randn(10, 64).bfloat16()
    kernel = backend.prepare_linear(weight.clone(), None)
    torch.testing.assert_close(kernel(x[::2, ::2]), F.linear(x[::2, ::2], weight), rtol=1e-2, atol=1e-1)


def test_without_the_private_operators_linear_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.backends.onednn_linear.packed_linear_works", lambda: False)
    weight, x = torch.randn(8, 4).bfloat16(), torch.randn(3, 4).bfloat16()
    linear = TorchBackend(CPU, own_kernels=False).prepare_linear(weight, None)
    assert torch.equal(linear(x), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(backend: TorchBackend, dtype: torch.dtype) -> None:
    """Normalise in float32, cast, multiply by the weight: for half precision that order shows, bit for bit."""
    torch.manual_seed(5)
    x = (torch.randn(7, 64) * 5).to(dtype)
    weight = (torch.randn(64) + 1).to(dtype)
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = normalised.to(dtype) * weight
    out = backend.rms_norm(x, weight, 1e-6)
    assert out.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    else:
        # The reciprocal root may differ in its last bit, which rarely reaches the cast.
        assert (out != expected).float().mean() < 0.01
        torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


def test_rms_norm_of_zeros_and_of_large_values(backend: TorchBackend) -> None:
    ones = torch.ones(8)
    assert torch.equal(backend.rms_norm(torch.zeros(2, 8), ones, 1e-6), torch.zeros(2, 8))
    large = backend.rms_norm(torch.full((1, 8), 60000.0).half(), ones.half(), 1e-6)
    torch.testing.assert_close(large, torch.ones(1, 8).half()), "the squares would overflow float16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silu_mul(backend: TorchBackend, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    gate, up = torch.randn(5, 33).to(dtype), torch.randn(5, 33).to(dtype)
    before = gate.clone(), up.clone()
    out = backend.silu_mul(gate, up)
    exact = up.double() * gate.double() * torch.sigmoid(gate.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=TOLERANCE[dtype])
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


# --- choices


@pytest.mark.parametrize("requested", ["bfloat16", "float16", "float32"])
def test_a_requested_dtype_is_taken(backend: TorchBackend, requested: str) -> None:
    assert backend.resolve_dtype(requested, "bfloat16") == getattr(torch, requested)


@pytest.mark.parametrize("name", ["float64", "half", "", "int8"])
def test_unknown_dtypes_are_refused(backend: TorchBackend, name: str) -> None:
    with pytest.raises(ConfigError, match="unknown dtype"):
        backend.resolve_dtype(name, None)
    with pytest.raises(ConfigError, match="use one of bfloat16, float16, float32"):
        require_known_dtype(name)


@pytest.mark.parametrize(
    ("has_fast_bf16", "declared", "expected"),
    [
        (True, "float32", torch.float32),
        (True, "bfloat16", torch.bfloat16),
        (True, "float16", torch.bfloat16),
        (True, None, torch.bfloat16),
        (False, "bfloat16", torch.float32),
        (False, "float16", torch.float32),
        (False, None, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, has_fast_bf16: bool, declared: str | None, expected: torch.dtype
) -> None:
    backend = TorchBackend(CPU)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_fast_bf16)
    assert backend.resolve_dtype("auto", declared) == expected


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "cuda:-1", "gpu", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="is not one of auto, cpu, cuda"):
        make_backend(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_an_absent_cuda_device(device: str) -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        make_backend(device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_cpu_backend(device: str) -> None:
    backend = make_backend(device)
    assert backend.device.type == "cpu"
    assert 0 < backend.available_memory_bytes(0.9) <= 4 << 30
    assert backend.default_max_num_batched_tokens() > 0


def test_kv_cache_sizes() -> None:
    cache = allocate_kv_cache(CONFIG, num_blocks=10, block_size=16, dtype=torch.bfloat16, device=CPU)
    assert cache.num_blocks == 10
    assert cache.data.shape == (NUM_LAYERS, 2, NUM_HEADS, 160, 16)
    assert cache.data.nbytes == 10 * kv_cache_block_bytes(CONFIG, 16, torch.bfloat16)
