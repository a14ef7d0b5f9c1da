"""The parts of a linear on all ranks make the whole one, whatever its weight is stored as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.architectures.causal_lm import CausalLM
from model.backends.torch_backend import TorchBackend
from model.contract.config import QuantizationConfig
from model.contract.errors import CheckpointError, ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.parallel import require_divisible, share_of_config
from model.distributed.shard import Cut, LinearShard, column_parallel, row_parallel, share_of
from model.execution.checkpoint import load_weights
from model.layers.linear import Linear
from model.quantization.gptq import GPTQLinear
from model.quantization.packing import pack_rows

CPU = torch.device("cpu")
K, PARTS = 96, (64, 32, 32)
N = sum(PARTS)


def loaded(layer: nn.Module, folder: Path) -> nn.Module:
    """A layer filled by the loader, from a file with the whole of it."""
    model = CausalLM()
    model.add_module("layer", layer)
    with torch.inference_mode():
        load_weights(model, folder, CPU)
    return layer


def shards(kind: str, size: int) -> list[LinearShard | None]:
    if kind == "column":
        return [column_parallel(K, PARTS, rank, size) for rank in range(size)]
    return [row_parallel(K, N, rank, size) for rank in range(size)]


def joined(layers: list[Any], kind: str, x: torch.Tensor) -> torch.Tensor:
    """What the ranks make of x together."""
    if kind == "row":
        parts = x.chunk(len(layers), 1)
        return torch.stack([layer(part, None) for layer, part in zip(layers, parts, strict=True)]).sum(0)
    outs = [layer(x, None).split([n // len(layers) for n in PARTS], 1) for layer in layers]
    return torch.cat([torch.cat(stretch, 1) for stretch in zip(*outs, strict=True)], 1)


@pytest.mark.parametrize("kind", ["column", "row"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(tmp_path: Path, kind: str, size: int, bias: bool) -> None:
    torch.manual_seed(0)
    tensors = {"layer.weight": torch.randn(N, K)} | ({"layer.bias": torch.randn(N)} if bias else {})
    save_file(tensors, tmp_path / "model.safetensors")

    def make(shard: LinearShard | None) -> nn.Module:
        layer = Linear(K, N, bias=bias, backend=TorchBackend(CPU), dtype=torch.float32, shard=shard)
        return loaded(layer, tmp_path)

    x = torch.randn(5, K)
    result = joined([make(shard) for shard in shards(kind, size)], kind, x)
    torch.testing.assert_close(result, make(None)(x, None))


@pytest.mark.parametrize("kind", ["column", "row"])
@pytest.mark.parametrize("group_size", [16, 64, -1])
@pytest.mark.parametrize(("bits", "layout"), [(4, "act-order"), (4, "in order"), (8, "no g_idx"), (4, "from the end")])
def test_gptq(tmp_path: Path, kind: str, group_size: int, bits: int, layout: str) -> None:
    """Asymmetric; on two ranks groups of 64 lie across the cut, and with act-order every group does."""
    generator = torch.Generator().manual_seed(bits)
    width = K if group_size == -1 else group_size
    num_groups = -(-K // width)
    groups = torch.arange(K) // width
    if layout == "act-order":
        groups = groups[torch.randperm(K, generator=generator)]
    elif layout == "from the end":
        groups = groups - num_groups

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(0, 1 << bits, shape, generator=generator)

    tensors = {
        "layer.qweight": pack_rows(draw(K, N), bits),
        "layer.qzeros": pack_rows(draw(N, num_groups), bits).t().contiguous(),
        "layer.scales": torch.rand(num_groups, N, generator=generator).half() * 0.1 + 0.01,
        "layer.bias": torch.randn(N, generator=generator),
    }
    if layout != "no g_idx":
        tensors["layer.g_idx"] = groups.to(torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    quantization = QuantizationConfig(
        quant_method="gptq", bits=bits, group_size=group_size, desc_act=layout == "act-order"
    )

    def make(shard: LinearShard | None) -> nn.Module:
        layer = GPTQLinear(
            K, N, quantization=quantization, backend=TorchBackend(CPU), dtype=torch.float32, shard=shard
        )
        return loaded(layer, tmp_path)

    x = torch.randn(5, K, generator=generator)
    result = joined([make(shard) for shard in shards(kind, 2)], kind, x)
    torch.testing.assert_close(result, make(None)(x, None), rtol=1e-4, atol=1e-4)


def test_a_cut_through_a_word_is_refused() -> None:
    quantization = QuantizationConfig(quant_method="gptq", bits=4, group_size=32)
    for shard in (row_parallel(96, 64, 0, 8), column_parallel(96, (64, 32), 0, 8)):
        with pytest.raises(CheckpointError, match="smaller --tensor-parallel-size"):
            GPTQLinear(
                96,
                shard.out_features if shard else 0,
                quantization=quantization,
                backend=TorchBackend(CPU),
                dtype=torch.float32,
                shard=shard,
            )


def test_a_file_of_another_shape_is_named_whole(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(N, K - 1)}, tmp_path / "model.safetensors")
    shard = row_parallel(K, N, 1, 2)
    layer = Linear(K, N, bias=False, backend=TorchBackend(CPU), dtype=torch.float32, shard=shard)
    with pytest.raises(CheckpointError, match=rf"\[{N}, {K - 1}\], but config.json asks for \[{N}, {K}\]"):
        loaded(layer, tmp_path)


@pytest.mark.parametrize(("number", "size"), [(10, 3), (7, 7), (303, 4), (5, 1)])
def test_shares_cover_everything_once(number: int, size: int) -> None:
    bounds = [share_of(number, rank, size) for rank in range(size)]
    assert [i for low, high in bounds for i in range(low, high)] == list(range(number))
    assert max(high - low for low, high in bounds) - min(high - low for low, high in bounds) <= 1


def test_a_cut_of_one_range_is_a_view() -> None:
    tensor = torch.arange(12).view(3, 4)
    assert Cut(1, 4, ((1, 3),)).of(tensor).untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert Cut(0, 3, ((0, 1), (2, 3))).of(tensor).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_what_cannot_be_split_is_refused_in_a_sentence(tiny_checkpoint: Path) -> None:
    config = read_model_config(tiny_checkpoint)
    require_divisible(config, 2, 1)
    config = config.with_windows((8, 64))
    assert (config.num_layers, share_of_config(config, 2, range(1, 2)).num_heads) == (2, 1)
    assert share_of_config(config, 1, range(1, 2)).attention_windows == (64,)
    with pytest.raises(ConfigError, match=r"has 2 heads and an MLP of 32 columns.*possible are 1, 2$"):
        require_divisible(config, 4, 1)
