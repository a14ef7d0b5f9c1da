"""GPTQ linears: the published layout, read exactly.

A weight of K inputs and N outputs is stored as small integers packed into int32 words, with a scale and a zero for
each group of inputs and each output. Nothing here names a device: how the numbers are kept and multiplied once they
are loaded is the backend's business; this file knows what they mean.
"""

from __future__ import annotations

import torch
from torch import nn

from model.backends.base import Backend, LinearKernel
from model.backends.weights import GPTQTensors
from model.contract.config import QuantizationConfig
from model.contract.errors import CheckpointError
from model.distributed.shard import Cut, LinearShard
from model.execution.forward_batch import ForwardBatch
from model.quantization.packing import WORD_BITS, unpack_rows

_INPUTS_PER_PASS = 1024


class GPTQLinear(nn.Module):
    """A quantised linear layer in the layout of the published Int4 and Int8 checkpoints.

    `weight[n, k] = (q[k, n] - zero[g, n]) * scale[g, n]` with `g = g_idx[k]`. Input k sits in word `k // per` of
    `qweight` at bit `(k % per) * bits`, output n likewise in `qzeros`, per = 32 / bits; zeros are stored minus one
    (minus nothing in GPTQModel's second layout).

    Args:
        in_features: K.
        out_features: N.
        quantization: bits and group size.
        backend: keeps the weight and multiplies.
        dtype: the activations' dtype.
        shard: the part of the layer that this rank has; None is all. Groups may lie across its ends, in any order.

    Raises:
        CheckpointError: the shape, or the rank's part of it, does not divide into words.
    """

    # Files without act-order may leave g_idx out; a bias is stored even where the unquantised layer has none.
    optional_tensors = frozenset({"g_idx", "bias"})
    # float16 in the published files; other tools write others, and rounding them would change the weights.
    stored_dtype_tensors = frozenset({"scales"})
    # Whether the words of `qweight` run along the outputs, as those of `qzeros` do.
    packs_outputs = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        quantization: QuantizationConfig,
        backend: Backend,
        dtype: torch.dtype,
        shard: LinearShard | None = None,
    ) -> None:
        super().__init__()
        per_word = WORD_BITS // quantization.bits
        group_size = in_features if quantization.group_size == -1 else quantization.group_size
        if in_features % per_word or out_features % per_word:
            raise CheckpointError(
                f"a quantised layer of {in_features} x {out_features} does not divide into words of {per_word} values"
            )
        num_groups = -(-in_features // group_size)
        self.shard = shard
        self.cuts: dict[str, Cut | None] = {}
        self._first_input = 0
        if shard is not None:
            self.cuts = _cuts(shard, per_word, packs_outputs=self.packs_outputs)
            self._first_input = shard.inputs[0]
            in_features, out_features = shard.num_inputs, shard.num_outputs
        self._bits = quantization.bits
        self._desc_act = quantization.desc_act
        self._zero_offset = quantization.zero_offset
        self._group_size = group_size
        self._in_features = in_features
        self._backend = backend
        self._dtype = dtype
        self.kernel: LinearKernel | None = None
        if self.packs_outputs:
            self.qweight = _placeholder(in_features, out_features // per_word, dtype=torch.int32)
        else:
            self.qweight = _placeholder(in_features // per_word, out_features, dtype=torch.int32)
        self.qzeros = _placeholder(num_groups, out_features // per_word, dtype=torch.int32)
        self.scales = _placeholder(num_groups, out_features, dtype=torch.float16)
        self.g_idx = _placeholder(in_features, dtype=torch.int32)
        self.bias = _placeholder(out_features, dtype=dtype)

    def finish_loading(self) -> int:
        """Hands the loaded tensors to the backend and lets go of them.

        Returns:
            Bytes that the backend keeps in their place.

        Raises:
            CheckpointError: `g_idx` names a group that does not exist, or is missing and needed.
        """
        qweight, qzeros, scales, g_idx, bias = self.qweight, self.qzeros, self.scales, self.g_idx, self.bias
        assert qweight is not None and qzeros is not None and scales is not None
        self.qweight = self.qzeros = self.scales = self.g_idx = self.bias = None
        if g_idx is None or g_idx.is_meta:
            if self._desc_act and len(scales) > 1:
                raise CheckpointError("g_idx is missing, and without it act-order (desc_act) cannot be undone")
            inputs = torch.arange(self._first_input, self._first_input + self._in_features, device=qweight.device)
            groups = inputs // self._group_size
        else:
            groups = g_idx.data.to(torch.int64)
            # Some tools wrote groups from the end, as negative numbers.
            groups = torch.where(groups < 0, groups + scales.shape[0], groups)
            if int(groups.min()) < 0 or int(groups.max()) >= scales.shape[0]:
                raise CheckpointError(f"g_idx names groups beyond the {scales.shape[0]} there are")
        kept_bias = None if bias is None or bias.is_meta or not bool(bias.any()) else bias.data
        kept_scales, kept_zeros = scales.data, qzeros.data
        if self.shard is not None and self.shard.is_row_parallel:
            used, groups = torch.unique(groups, return_inverse=True)  # the file's scales are of all ranks' inputs
            kept_scales, kept_zeros = kept_scales[used], kept_zeros[used]
            kept_bias = kept_bias if self.shard.keeps_bias else None
        stored = GPTQTensors(qweight.data, kept_zeros, kept_scales, groups, self._bits, self._zero_offset)
        packed = self._backend.prepare_gptq_linear(stored, kept_bias, self._dtype)
        if packed is not None:
            self.kernel, num_bytes = packed
            return num_bytes
        weight = dequantize(stored, self._dtype)
        num_bytes = weight.nbytes + (0 if kept_bias is None else kept_bias.nbytes)
        self.kernel = self._backend.prepare_linear(weight, kept_bias)
        return num_bytes

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [num_tokens, in_features] to [num_tokens, out_features]; see `MakeLinear`."""
        assert self.kernel is not None, "forward before finish_loading"
        return self.kernel(x)


def _cuts(shard: LinearShard, per_word: int, *, packs_outputs: bool) -> dict[str, Cut | None]:
    """Returns how the stored tensors of a layer are cut."""
    rows, columns = shard.input_cut(0), shard.output_cut(1)
    try:
        row_words = None if rows is None else rows.in_words(per_word)
        column_words = None if columns is None else columns.in_words(per_word)
        return {
            "qweight": rows or column_words if packs_outputs else row_words or columns,
            "qzeros": column_words,
            "scales": columns,
            "g_idx": rows,
            "bias": shard.output_cut(0),
        }
    except ValueError:
        part = f"{shard.num_inputs} x {shard.num_outputs}"
        raise CheckpointError(
            f"a GPTQ layer of {shard.in_features} x {shard.out_features} cannot be split: a rank's part of {part} does "
            f"not divide into words of {per_word} values; use a smaller --tensor-parallel-size"
        ) from None


def dequantize(stored: GPTQTensors, dtype: torch.dtype) -> torch.Tensor:
    """Returns the weight that a GPTQ layer stands for: [N, K], contiguous; products in float32, rounded once."""
    values = unpack_rows(stored.qweight, stored.bits)
    zeros = unpack_rows(stored.qzeros.t().contiguous(), stored.bits).t() + stored.zero_offset
    num_inputs, num_outputs = values.shape
    weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=values.device)
    scales = stored.scales.float()
    # A slice of inputs at a time: the float32 products of a whole layer would be twice its bfloat16 size.
    for low in range(0, num_inputs, _INPUTS_PER_PASS):
        rows = slice(low, low + _INPUTS_PER_PASS)
        group = stored.groups[rows]
        weight[:, rows] = ((values[rows] - zeros[group]).float() * scales[group]).t().to(dtype)
    return weight


def _placeholder(*shape: int, dtype: torch.dtype) -> nn.Parameter | None:
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device="meta"), requires_grad=False)
