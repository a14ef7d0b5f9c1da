"""Batched greedy decoding with the training module, without a server."""

from __future__ import annotations

from collections.abc import Callable

import torch

from demo.recipe.training.model import LayerCache, QwenForTraining
from model.contract.tokenizer import Tokenizer

MAX_ROW_TOKENS = 16_384


@torch.inference_mode()
def generate(
    model: QwenForTraining,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    max_new_tokens: int = 160,
    stop: str = "Observation:",
    progress: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """Continues every prompt at temperature 0; returns the texts in the same order.

    Args:
        prompts: token ids; none may be empty or longer than the trained length.
        max_new_tokens: limit for each prompt.
        stop: text that ends a continuation; it is cut off with everything after it.
        progress: called with the number of prompts in each finished group.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    at = 0
    while at < len(order):
        size = 1
        while (
            at + size < len(order)
            and size < 64
            and (size + 1) * (len(prompts[order[at + size]]) + max_new_tokens) < MAX_ROW_TOKENS
        ):
            size += 1
        group = order[at : at + size]
        for i, text in zip(
            group, _generate_group(model, tokenizer, [prompts[i] for i in group], max_new_tokens, stop), strict=True
        ):
            answers[i] = text
        at += size
        progress(size)
    return answers


def _generate_group(
    model: QwenForTraining, tokenizer: Tokenizer, prompts: list[list[int]], max_new_tokens: int, stop: str
) -> list[str]:
    device = next(model.parameters()).device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    longest = int(lengths.max())
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    config = model.config
    caches = [
        LayerCache(config, len(prompts), longest + max_new_tokens, device) for _ in range(config.num_hidden_layers)
    ]
    hidden = model.hidden(ids, caches)
    last = model.lm_head(hidden[torch.arange(len(prompts), device=device), lengths - 1]).argmax(-1)
    for cache in caches:  # the padding after short prompts will be overwritten
        cache.lengths = lengths.clone()
    out: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    for _ in range(max_new_tokens):
        for row, token in enumerate(last.tolist()):
            if not running[row]:
                continue
            if tokenizer.is_special(token):
                running[row] = False
                continue
            out[row].append(token)
            if stop in tokenizer.decode(out[row][-8:]):
                running[row] = False
        if not any(running):
            break
        hidden = model.hidden(last[:, None], caches, prompt_len=longest)
        last = model.lm_head(hidden[:, -1]).argmax(-1)
    return [tokenizer.decode(tokens).split(stop)[0] for tokens in out]
