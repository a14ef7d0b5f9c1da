"""Writes a trained model in the published layout, for the server to read like any other checkpoint.

`python -m demo.recipe.training.export demo/.train demo/checkpoint` exports a saved state as it is, without a cool-down.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.recipe.training.grid import GRID_STEPS, round_to_grid
from demo.recipe.training.model import ModelConfig, QwenForTraining
from model.contract.files.vocabulary import read_ranks
from model.contract.tokenizer import Tokenizer


def config_json(config: ModelConfig) -> dict[str, object]:
    """The content of `config.json`."""
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "tokenizer_class": "QWenTokenizer",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "kv_channels": config.kv_channels,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.seq_length,
        "seq_length": config.seq_length,
        "rotary_emb_base": config.rotary_emb_base,
        "rotary_pct": 1.0,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "use_dynamic_ntk": config.use_dynamic_ntk,
        "use_logn_attn": config.use_logn_attn,
        "vocab_size": config.vocab_size,
        "no_bias": True,
        "tie_word_embeddings": False,
        "scale_attn_weights": True,
        "use_cache": True,
        "emb_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "bf16": True,
        "fp16": False,
        "fp32": False,
    }


def export_checkpoint(model: QwenForTraining, vocabulary: Path, folder: Path, grid_steps: int | None = None) -> int:
    """Writes the checkpoint's five files.

    Args:
        model: its parameters are rounded to bfloat16, or further.
        vocabulary: the `qwen.tiktoken` to copy.
        folder: created if it does not exist.
        grid_steps: see `round_to_grid`; None rounds to bfloat16 only.

    Returns:
        Size of `model.safetensors` in bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(read_ranks(vocabulary))
    weights = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in model.state_dict().items()}
    tensors = {n: (round_to_grid(t, grid_steps) if grid_steps else t).to(torch.bfloat16) for n, t in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "qwen.tiktoken").write_bytes(vocabulary.read_bytes())
    generation = {
        "chat_format": "chatml",
        "eos_token_id": tokenizer.im_end_id,
        "pad_token_id": tokenizer.endoftext_id,
        "stop_words_ids": [[tokenizer.im_end_id], [tokenizer.im_start_id], [tokenizer.endoftext_id]],
        "do_sample": False,
        "max_new_tokens": 512,
        "max_window_size": model.config.seq_length - 256,
        "top_k": 0,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
    }
    _write(folder / "config.json", config_json(model.config))
    _write(folder / "generation_config.json", generation)
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "QWenTokenizer", "model_max_length": model.config.seq_length},
    )
    return (folder / "model.safetensors").stat().st_size


def load_checkpoint(folder: Path) -> QwenForTraining:
    """Reads an exported checkpoint, in float32."""
    from safetensors.torch import load_file

    stored = json.loads((folder / "config.json").read_text())
    config = ModelConfig(**{k: stored[k] for k in ModelConfig.__dataclass_fields__})
    model = QwenForTraining(config)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model


def export_state(
    state_dir: Path,
    folder: Path,
    name: str = "state.pt",
    average: bool = False,
    grid_steps: int | None = None,
) -> int:
    """Writes the checkpoint of a saved training state; returns the size of its weights in bytes.

    Args:
        state_dir: folder of the training state.
        folder: folder of the checkpoint.
        name: file name of the state.
        average: export the running average of the weights, which is much like a cooled-down state.
        grid_steps: see `round_to_grid`; None rounds to bfloat16 alone.
    """
    saved = torch.load(state_dir / name, map_location="cpu", weights_only=True)
    model = QwenForTraining(ModelConfig(**saved["config"]))
    model.load_state_dict(saved["average" if average else "model"])
    return export_checkpoint(model, state_dir / "qwen.tiktoken", folder, grid_steps)


def main(argv: list[str] | None = None) -> None:
    """Exports a state."""
    p = argparse.ArgumentParser(prog="python -m demo.recipe.training.export", description=__doc__)
    p.add_argument("state", help="folder of the training state")
    p.add_argument("out", help="folder of the checkpoint to write")
    p.add_argument("--name", default="state.pt", help="cooled.pt after a cool-down")
    p.add_argument("--average", action="store_true", help="of the last steps' weights: what a cool-down would bring")
    p.add_argument(
        "--grid-steps",
        type=int,
        choices=GRID_STEPS,
        metavar="N",
        help="round to so many steps a standard deviation; the repository keeps 3 (grid.py)",
    )
    args = p.parse_args(argv)
    size = export_state(Path(args.state), Path(args.out), args.name, args.average, args.grid_steps)
    print(f"{args.out}: {size / 1e6:.1f} MB")


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
