"""What quantising costs in quality: logits, divergence and suites, for int8, int4 and nf4 at load, beside GPTQ.

`python -m benchmarks.quantization_error demo/checkpoint --text demo/suites/chat.jsonl` runs texts through a checkpoint
in float32 and through each variant, and prints for all positions: the logits' relative error, the divergence
KL(original || variant) in nats a token, how often the likeliest token is the same, and what the weights take.
`--suites demo/suites/chat.jsonl demo/suites/tools.jsonl` starts a server for each variant and asks it the suites too.
GPTQ is made anew by `qwen-server quantize` (its calibration text is the built-in one); a golden folder may be named
instead of texts' vocabulary: its own prompts are run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.soak.server import soak_server
from model.architectures import make_model
from model.backends.torch_backend import TorchBackend
from model.contract.config import NO_QUANTIZATION, QUANTIZED_BITS
from model.contract.files.model_config import read_model_config
from model.contract.tokenizer import Tokenizer
from model.execution.checkpoint import load_weights
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import allocate_kv_cache
from model.quantization import linear_maker
from server.run_module import module_command
from tools.quantize.options import QuantizeOptions
from tools.quantize.run import quantize

_BLOCK_SIZE = 16


class Variant:
    """A checkpoint on the CPU in float32, quantised at load as by `--quantization`, and run without an engine."""

    def __init__(self, folder: Path, at_load: str) -> None:
        self.config = read_model_config(folder)
        self._backend = TorchBackend(torch.device("cpu"))
        make_linear = linear_maker(self.config, self._backend, torch.float32, at_load)
        self._model = make_model(self.config, make_linear, self._backend, torch.float32)
        with torch.inference_mode():
            self.num_bytes = load_weights(self._model, folder, self._backend.device)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """[T, vocab_size] float32."""
        num_blocks = -(-len(ids) // _BLOCK_SIZE)
        cache = allocate_kv_cache(
            self.config, num_blocks=num_blocks, block_size=_BLOCK_SIZE, dtype=torch.float32, device=self._backend.device
        )
        span = SequenceSpan(ids, 0, self.config.rope_alpha(len(ids)), list(range(num_blocks)), len(ids))
        batch = ForwardBatch.build([span], self.config, _BLOCK_SIZE, self._backend.device)
        with torch.inference_mode():
            return self._model.logits(self._model(batch, cache)).clone()


def read_prompts(folder: Path, text: Path | None, limit: int) -> list[list[int]]:
    """Returns token ids of a suite's chats, or of the prompts in a golden folder."""
    if text is None:
        cases = json.loads((folder / "cases.json").read_text())["cases"]
        return [case["prompt"] for case in cases][:limit]
    tokenizer = Tokenizer.from_folder(folder)
    lines = [json.loads(line) for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = []
    for line in lines[:: max(1, len(lines) // limit)][:limit]:
        turns = [*line["messages"], {"role": "assistant", "content": str(line["expected"])}]
        chat = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
        prompts.append(tokenizer.encode_with_special_tokens(chat))
    return prompts


def compare(original: list[torch.Tensor], variant: Variant, prompts: list[list[int]]) -> dict[str, float]:
    """Returns the figures of one variant."""
    error = norm = divergence = same = 0.0
    count = 0
    for expected, ids in zip(original, prompts, strict=True):
        found = variant.logits(ids)
        error += float((found - expected).square().sum())
        norm += float(expected.square().sum())
        logs, others = F.log_softmax(expected, -1), F.log_softmax(found, -1)
        divergence += float((logs.exp() * (logs - others)).sum())
        same += float((expected.argmax(-1) == found.argmax(-1)).sum())
        count += len(ids)
    return {
        "logit_error": (error / norm) ** 0.5,
        "kl_nats": divergence / count,
        "same_token": same / count,
        "weights_mb": variant.num_bytes / 1e6,
    }


def ask_suites(folder: Path, at_load: str, suites: list[Path], limit: int | None) -> dict[str, Any]:
    """Each suite's figures, as `qwen-server eval` writes them."""
    results: dict[str, Any] = {}
    flags = ["--quantization", at_load, "--dtype", "float32", "--kv-cache-memory", "256MiB"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        soak_server(str(folder), Path(scratch) / "log", *flags) as server,
    ):
        for suite in suites:
            kind = "tools" if "tools" in suite.stem else "chat"
            out = Path(scratch) / "figures.json"
            words = ["eval", kind, "--base-url", server.url.geturl(), "--suite", str(suite), "--json", str(out)]
            words += [] if limit is None else ["--limit", str(limit)]
            subprocess.run(module_command("server", *words), check=True, stdout=subprocess.DEVNULL)
            figures = json.loads(out.read_text(encoding="utf-8"))
            results[suite.stem] = figures["all"]
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Errors of weights that are quantised at load, beside GPTQ's.")
    parser.add_argument("folder", type=Path, help="an unquantised checkpoint")
    parser.add_argument("--text", type=Path, help="a suite of chats (default: the folder's cases.json)")
    parser.add_argument("--num-texts", type=int, default=32)
    parser.add_argument("--suites", type=Path, nargs="+", default=[], help="asked of a server of each variant")
    parser.add_argument("--limit", type=int, help="cases of a suite")
    parser.add_argument("--no-gptq", action="store_true")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    prompts = read_prompts(arguments.folder, arguments.text, arguments.num_texts)
    plain = Variant(arguments.folder, NO_QUANTIZATION)
    original = [plain.logits(ids) for ids in prompts]
    with tempfile.TemporaryDirectory() as scratch:
        variants = {NO_QUANTIZATION: (arguments.folder, NO_QUANTIZATION)}
        variants |= {mode: (arguments.folder, mode) for mode in QUANTIZED_BITS}
        for bits in () if arguments.no_gptq else (8, 4):
            target = Path(scratch) / f"gptq-int{bits}"
            quantize(QuantizeOptions(source=arguments.folder, target=target, bits=bits, device="cpu"))
            variants[target.name] = (target, NO_QUANTIZATION)
        print("| weights | MB | logit error | KL, nats a token | same likeliest token |\n|---|---|---|---|---|")
        for name, (folder, at_load) in variants.items():
            row = compare(original, Variant(folder, at_load), prompts)
            print(
                f"| {name} | {row['weights_mb']:.1f} | {row['logit_error']:.4f} | {row['kl_nats']:.5f} |"
                f" {row['same_token']:.2%} |",
                flush=True,
            )
        for name, (folder, at_load) in variants.items() if arguments.suites else ():
            print(name, json.dumps(ask_suites(folder, at_load, arguments.suites, arguments.limit)), flush=True)


if __name__ == "__main__":
    main()
