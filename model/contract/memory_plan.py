"""Reckons how much memory a checkpoint takes from its numbers: nothing is loaded.

Pure. The formulas, with H hidden_size, I intermediate_size, L layers, V vocabulary rows, b bytes of the dtype:

- weights: embedding, head and norms V*H*2 + H*(2L + 1), times b; in each layer five linears with 4*H*H + 1.5*H*I
  weights in all and 3*H biases of c_attn. A linear of K inputs and N outputs takes K*N*b, or as GPTQ
  K*N*bits/8 + groups*(2*N + N*bits/8) + 2*N (words, scales, zeros, bias); quantised at load K*N*QUANTIZED_BITS/8.
- KV cache: 2*L*heads*(head_dim*b) a token; int8: 2*L*heads*(head_dim + 4), for each head has a float32 scale. Where all
  layers have windows, of the last tokens in the largest one and those of two steps.
- activations of a step with T tokens, R of which get a next token: T*(2*H + 1.5*I)*b at the widest place (the MLP:
  residual, normed input, both halves, their product), and R*V*4*2 for logits and what sampling makes of them.
- a LoRA adapter of rank r on a GPU, which takes ranks in sixteens: r*(11*H + 1.5*I) numbers a layer (A and B of all
  five linears, and of c_attn an A for each of queries, keys and values), times L and b; of several ranks each has its
  part of the factor that lies along what is split, and all of the other. On a CPU an adapter that was trained on c_attn
  as a whole has one A there: 9*H. What an adapter trained whole (wte, lm_head: V*H numbers each) comes on top.
- what the device's runtime itself takes (a CUDA context and its libraries) is not in these figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.contract.attention_windows import num_blocks_kept
from model.contract.config import (
    NO_QUANTIZATION,
    QUANTIZED_BITS,
    ModelConfig,
    QuantizationConfig,
    require_can_quantize,
)
from model.contract.files.linears import QWEN2_LINEARS, LinearShape, linear_shapes
from model.contract.parallel import layers_of_stages, require_divisible

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
KV_DTYPE_BYTES = {**DTYPE_BYTES, "int8": 1}
_SCALE_BYTES = 4  # of a head of a token in an int8 cache
_GPTQ_GROUP = 128
_RANKS_AT_ONCE = 16  # of an adapter's factors on a GPU


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A checkpoint and how it would be served. All figures are for one device: of several, the one that needs most.

    Attributes:
        config: the checkpoint's numbers; `quantization` decides how its linears are kept.
        dtype: the dtype of activations and unquantised weights, a key of DTYPE_BYTES.
        kv_dtype: the cache's dtype, a key of KV_DTYPE_BYTES.
        block_size: tokens in a block of the cache.
        max_num_batched_tokens: the most tokens in one step.
        at_load: how the linears of blocks are quantised while they are loaded; a key of QUANTIZED_BITS, or "none".
        num_ranks: devices that share each layer.
        lm_head_dtype: "int8" where the output layer is quantised while it is loaded, else "auto".
        num_stages: groups of `num_ranks` devices that the layers are dealt out to.
    """

    config: ModelConfig
    dtype: str
    kv_dtype: str
    block_size: int = 16
    max_num_batched_tokens: int = 4096
    at_load: str = NO_QUANTIZATION
    num_ranks: int = 1
    lm_head_dtype: str = "auto"
    num_stages: int = 1

    @property
    def weights_bytes(self) -> int:
        """Bytes of the loaded checkpoint."""
        return max(num_bytes for num_bytes, _ in self._stages)

    @property
    def layers_of_stages(self) -> list[range]:
        """The layers of each stage; every process works them out for itself, from the same numbers."""
        embedding, *layers, head = self._part_bytes
        return layers_of_stages(embedding, layers, head, self.num_stages)

    @property
    def _stages(self) -> list[tuple[int, int]]:
        """Each stage's bytes of weights and number of layers."""
        embedding, *layers, head = self._part_bytes
        stages = [(sum(layers[part.start : part.stop]), len(part)) for part in self.layers_of_stages]
        stages[0] = (embedding + stages[0][0], stages[0][1])
        stages[-1] = (stages[-1][0] + head, stages[-1][1])
        return stages

    @property
    def _saved_bytes(self) -> int:
        """Bytes that int8 saves of the output layer; a file that has packed it keeps it as it is."""
        if self.lm_head_dtype != "int8" or self.config.stored_weights is not None:
            return 0
        saved = DTYPE_BYTES[self.dtype] - QUANTIZED_BITS["int8"] / 8
        return int(-(-self.config.vocab_size // self.num_ranks) * self.config.hidden_size * saved)

    @property
    def _part_bytes(self) -> list[int]:
        """Bytes of the embedding, of each layer, and of the final norm with the output layer."""
        config, width = self.config, DTYPE_BYTES[self.dtype]
        if config.stored_weights is not None and self.at_load == NO_QUANTIZATION:
            wholes = [packed + plain * width for packed, plain in zip(*config.stored_weights, strict=True)]
            return [-(-whole // self.num_ranks) for whole in wholes]
        hidden = config.hidden_size
        rows = -(-config.vocab_size // self.num_ranks) * hidden * width
        layer = sum(self._linear_bytes(*shape) for shape in self._linears.values())
        layer += self._bias_bytes + 2 * hidden * width
        return [rows, *[layer] * config.num_layers, hidden * width + rows - self._saved_bytes]

    @property
    def _linears(self) -> dict[str, LinearShape]:
        """The shapes of a rank's part of the linears of a block: c_proj is split along its inputs."""
        return {
            name: LinearShape(num_inputs // self.num_ranks, num_outputs)
            if name.endswith("c_proj")
            else LinearShape(num_inputs, num_outputs // self.num_ranks)
            for name, (num_inputs, num_outputs) in linear_shapes(self.config).items()
        }

    def _linear_bytes(self, num_inputs: int, num_outputs: int) -> int:
        quantization = self.config.quantization
        if self.at_load != NO_QUANTIZATION:
            return int(num_inputs * num_outputs * QUANTIZED_BITS[self.at_load] / 8)
        if quantization is None:
            return num_inputs * num_outputs * DTYPE_BYTES[self.dtype]
        group = num_inputs if quantization.group_size == -1 else quantization.group_size
        num_groups = -(-num_inputs // group)
        words = num_inputs * num_outputs * quantization.bits // 8
        return words + num_groups * (2 * num_outputs + num_outputs * quantization.bits // 8)

    @property
    def _bias_bytes(self) -> int:
        num_outputs = {name: shape.num_outputs for name, shape in self._linears.items()}
        if self.config.quantization is not None:
            return 2 * sum(num_outputs.values())
        num_biases = sum(num_outputs.values()) if self.config.has_bias else num_outputs["attn.c_attn"]
        return num_biases * DTYPE_BYTES[self.dtype]

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return self._kv_layer_bytes * max(num_layers for _, num_layers in self._stages)

    @property
    def _kv_layer_bytes(self) -> int:
        """Bytes of the keys and values of one token in one layer."""
        _, num_kv_heads, head_dim = self.config.attention_shape
        head = head_dim * KV_DTYPE_BYTES[self.kv_dtype] + (_SCALE_BYTES if self.kv_dtype == "int8" else 0)
        return 2 * num_kv_heads // self.num_ranks * head

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one block of the cache."""
        return self.kv_token_bytes * self.block_size

    def activation_bytes(self, num_tokens: int, num_sampled: int) -> int:
        """Of one step.

        Args:
            num_tokens: in the step.
            num_sampled: of them, those that get a next token.
        """
        config = self.config
        widest = 2 * config.hidden_size + config.intermediate_size * 3 // 2 // self.num_ranks
        logits = num_sampled * config.vocab_size * 4 * 2
        return num_tokens * widest * DTYPE_BYTES[self.dtype] + logits

    def peak_bytes(self, num_sequences: int, num_prompt_tokens: int, num_new_tokens: int) -> int:
        """Bytes of weights, cache and activations when all sequences of a batch have reached their end."""
        num_slots = num_sequences * self.blocks_of(num_prompt_tokens + num_new_tokens) * self.block_size
        num_step_tokens = min(self.max_num_batched_tokens, max(num_sequences * num_prompt_tokens, num_sequences))
        held = max(weights + num_slots * layers * self._kv_layer_bytes for weights, layers in self._stages)
        return held + self.activation_bytes(num_step_tokens, num_sequences)

    def blocks_of(self, num_tokens: int) -> int:
        """Returns the most blocks that a sequence holds while it grows to a length: with windows not all at once."""
        # A device launches a step before the one before it is settled, and each stage has one.
        num_unsettled = max(2, self.num_stages) * self.max_num_batched_tokens
        return num_blocks_kept(num_tokens, self.block_size, self.config.largest_window, num_unsettled)

    def blocks_that_fit(self, device_bytes: int, max_num_seqs: int) -> int:
        """Returns the blocks of cache that fit beside weights and the largest step; negative if not even those fit.

        Args:
            device_bytes: the memory that may be used.
            max_num_seqs: the most sequences in a step.
        """
        free = device_bytes - self.activation_bytes(self.max_num_batched_tokens, max_num_seqs)
        layer_bytes = self._kv_layer_bytes * self.block_size
        return min((free - weights) // (num_layers * layer_bytes) for weights, num_layers in self._stages)

    def quantized(self, bits: int | None) -> MemoryPlan:
        """Returns the plan of the same checkpoint with other weights.

        Args:
            bits: 4 or 8 for GPTQ in groups of 128 (the checkpoint's own bits leave it as it is); None unquantises it.
        """
        own = self.config.quantization
        is_published = self.config.stored_weights is None and self.at_load == NO_QUANTIZATION
        if is_published and bits == (None if own is None else own.bits):
            return self
        quantization = None
        if bits is not None:
            quantization = QuantizationConfig(quant_method="gptq", bits=bits, group_size=_GPTQ_GROUP)
        return replace(
            self,
            config=replace(self.config, quantization=quantization, stored_weights=None),
            at_load=NO_QUANTIZATION,
        )

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of a LoRA adapter that may have factors of this rank for all linears of the blocks, on a GPU."""
        num_factors = sum(len(QWEN2_LINEARS[name]) * k + n for name, (k, n) in self._linears.items())
        num_layers = max(num_layers for _, num_layers in self._stages)
        held_rank = -(-rank // _RANKS_AT_ONCE) * _RANKS_AT_ONCE
        return held_rank * num_factors * num_layers * DTYPE_BYTES[self.dtype]

    def summary(self) -> str:
        """Describes the plan in one line for the log."""
        quantization = self.config.quantization
        kind = self.dtype if quantization is None else f"Int{quantization.bits}, activations {self.dtype}"
        if self.config.stored_weights is not None:
            kind = f"GGUF, activations {self.dtype}"
        if self.at_load != NO_QUANTIZATION:
            kind = f"{self.at_load}, activations {self.dtype}"
        largest = self.config.largest_window
        return (
            f"weights {self.weights_bytes / 1e9:.2f} GB ({kind}); KV cache ({self.kv_dtype}) "
            f"{self.kv_token_bytes / 1e3:.1f} kB a token, {self.kv_block_bytes / 1e6:.2f} MB a block of "
            f"{self.block_size}" + (f", {largest} tokens of a sequence and what steps add" if largest else "")
        )


def plan_memory(
    config: ModelConfig,
    *,
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    block_size: int = 16,
    at_load: str = NO_QUANTIZATION,
    lm_head_dtype: str = "auto",
    num_ranks: int = 1,
    num_stages: int = 1,
) -> MemoryPlan:
    """Makes a plan; "auto" is the checkpoint's dtype or bfloat16, for the cache what the file asks for or that dtype.

    Raises:
        ConfigError: it is to be quantised at load, and is quantised already; or it cannot be split so.
    """
    require_can_quantize(config, at_load)
    require_divisible(config, num_ranks, num_stages)
    resolved = (config.declared_dtype or "bfloat16") if dtype == "auto" else dtype
    if kv_cache_dtype == "auto":
        kv_cache_dtype = "int8" if config.int8_kv_cache else resolved
    return MemoryPlan(
        config,
        resolved,
        kv_cache_dtype,
        block_size,
        at_load=at_load,
        lm_head_dtype=lm_head_dtype,
        num_ranks=num_ranks,
        num_stages=num_stages,
    )
