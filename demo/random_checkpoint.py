"""Writes a random checkpoint in the published layout: any size, seeded, with the 256 bytes as its vocabulary.

`python -m demo.random_checkpoint DIR` writes the one that most tests use; benchmarks use other sizes. Its replies are
nonsense, but it loads, batches and streams like a real one.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a checkpoint.

    Attributes:
        vocab_size: rows of embedding and output layer; 256 bytes and 208 control tokens need 464.
        quantized_bits: 4 or 8 for GPTQ weights in the published layout; 0 for none.
    """

    num_layers: int = 4
    hidden_size: int = 256
    num_heads: int = 4
    intermediate_size: int = 1376
    vocab_size: int = 512
    seq_length: int = 2048
    dtype: str = "float32"
    quantized_bits: int = 0


_SMALLEST = Shape(
    num_layers=24,
    hidden_size=2048,
    num_heads=16,
    intermediate_size=11008,
    vocab_size=151936,
    seq_length=8192,
    dtype="bfloat16",
)
SHAPES = {
    "demo": Shape(),
    "1.8b": _SMALLEST,
    "1.8b-int4": replace(_SMALLEST, quantized_bits=4),
    "1.8b-int8": replace(_SMALLEST, quantized_bits=8),
}
_GROUP_SIZE = 128


def write(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Writes the checkpoint, replacing the folder if it exists. The folder appears complete or not at all."""
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_tensors(shape, seed), str(partial / "model.safetensors"), metadata={"format": "pt"})
    for name, content in _json_files(shape).items():
        (partial / name).write_text(json.dumps(content, indent=2) + "\n")
    vocabulary = "".join(f"{base64.b64encode(bytes([b])).decode()} {b}\n" for b in range(256))
    (partial / "qwen.tiktoken").write_text(vocabulary)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _tensors(shape: Shape, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = _DTYPES[shape.dtype]

    def normal(*size: int, scale: float) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(dtype)

    hidden, inner = shape.hidden_size, shape.intermediate_size // 2
    tensors = {
        "transformer.wte.weight": normal(shape.vocab_size, hidden, scale=1.0),
        "transformer.ln_f.weight": torch.ones(hidden, dtype=dtype),
        "lm_head.weight": normal(shape.vocab_size, hidden, scale=2.0 * hidden**-0.5),
    }
    for layer in range(shape.num_layers):
        prefix = f"transformer.h.{layer}."
        tensors |= {
            prefix + "ln_1.weight": torch.ones(hidden, dtype=dtype),
            prefix + "ln_2.weight": torch.ones(hidden, dtype=dtype),
        }
        linears = {
            "attn.c_attn": (3 * hidden, hidden),
            "attn.c_proj": (hidden, hidden),
            "mlp.w1": (inner, hidden),
            "mlp.w2": (inner, hidden),
            "mlp.c_proj": (hidden, inner),
        }
        for name, (num_outputs, num_inputs) in linears.items():
            if shape.quantized_bits:
                layer_tensors = _gptq_tensors(num_outputs, num_inputs, shape.quantized_bits, generator)
            else:
                layer_tensors = {"weight": normal(num_outputs, num_inputs, scale=num_inputs**-0.5)}
            tensors |= {f"{prefix}{name}.{kind}": tensor for kind, tensor in layer_tensors.items()}
        tensors[prefix + "attn.c_attn.bias"] = normal(3 * hidden, scale=0.1)
    return tensors


def _gptq_tensors(num_outputs: int, num_inputs: int, bits: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Returns random integers around the middle, with scales that give the weights their usual size."""
    per_word, middle = 32 // bits, 1 << (bits - 1)
    num_groups = num_inputs // _GROUP_SIZE
    words = torch.randint(-(1 << 31), 1 << 31, (num_inputs // per_word, num_outputs), generator=generator)
    zero_word = sum((middle - 1) << (bits * i) for i in range(per_word))  # zeros are stored minus one
    scale = num_inputs**-0.5 / (0.577 * middle)  # uniform integers deviate by 0.577 of their half range
    return {
        "qweight": words.to(torch.int32),
        "qzeros": torch.full((num_groups, num_outputs // per_word), zero_word, dtype=torch.int32),
        "scales": torch.full((num_groups, num_outputs), scale, dtype=torch.float16),
        "g_idx": torch.arange(num_inputs, dtype=torch.int32) // _GROUP_SIZE,
    }


def _json_files(shape: Shape) -> dict[str, dict[str, object]]:
    config: dict[str, object] = {
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "kv_channels": shape.hidden_size // shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": 4 * shape.seq_length,
        "seq_length": shape.seq_length,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "layer_norm_epsilon": 1e-06,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "tie_word_embeddings": False,
        "bf16": shape.dtype == "bfloat16",
        "fp16": shape.dtype == "float16",
        "fp32": shape.dtype == "float32",
    }
    if shape.quantized_bits:
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": shape.quantized_bits,
            "group_size": _GROUP_SIZE,
            "desc_act": False,
            "sym": True,
        }
    generation: dict[str, object] = {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "top_k": 0,
        "top_p": 0.8,
        "repetition_penalty": 1.1,
    }
    tokenizer: dict[str, object] = {"model_max_length": 4 * shape.seq_length, "tokenizer_class": "QWenTokenizer"}
    return {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.folder, SHAPES[arguments.shape], arguments.seed)


if __name__ == "__main__":
    main()
