"""Makes padded batches of conversations."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from model.contract.errors import ConfigError
from model.contract.tokenizer import Tokenizer
from tools.finetune.conversations import Conversation
from tools.finetune.examples import IGNORED, Example, examples_of
from tools.finetune.options import FinetuneOptions

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048


class Examples(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Examples by number, as transformers' Trainer asks for them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        example = self._examples[index]
        return {"input_ids": example.ids, "labels": example.labels}


def make_examples(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, options: FinetuneOptions, trained_length: int
) -> Examples:
    """Encodes conversations and fits them into the length.

    Args:
        trained_length: beyond it the layout that is trained computes something else than the server.

    Raises:
        ConfigError: the length is beyond the trained one, or nothing is left to learn.
    """
    max_length = options.max_length or min(DEFAULT_MAX_LENGTH, trained_length)
    if max_length > trained_length:
        raise ConfigError(
            f"--max-length {max_length}: the model was trained on {trained_length} tokens, and beyond them what is"
            " trained here (without NTK and LogN) is not what the server computes"
        )
    examples, num_long, num_lost = [], 0, 0
    for conversation in conversations:
        for example in examples_of(conversation, tokenizer):
            if len(example.ids) > max_length:
                num_long += 1
                if options.long_samples == "drop":
                    continue
                example = Example(example.ids[:max_length], example.labels[:max_length])
            # The first token is never predicted.
            if all(label == IGNORED for label in example.labels[1:]):
                num_lost += 1
                continue
            examples.append(example)
    verb = "dropped" if options.long_samples == "drop" else "cut"
    if num_long:
        logger.info("%d samples are longer than %d tokens and were %s", num_long, max_length, verb)
    if num_lost:
        logger.info("%d of them had no reply left to learn and were dropped", num_lost)
    if not examples:
        raise ConfigError(f"{options.data}: no sample fits into --max-length {max_length}")
    learned = sum(example.num_learned for example in examples)
    total = sum(len(example.ids) for example in examples)
    logger.info("%d samples, %d tokens, of which %d are learned", len(examples), total, learned)
    return Examples(examples)


class Padding:
    """Makes a batch of rows filled up on the right with `pad_id`, which is neither attended to nor learned."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Returns input_ids, labels and attention_mask, each [rows, longest] int64."""
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), longest)
        batch = {
            "input_ids": torch.full(shape, self._pad_id),
            "labels": torch.full(shape, IGNORED),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
        }
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][number, :length] = torch.tensor(row["input_ids"])
            batch["labels"][number, :length] = torch.tensor(row["labels"])
            batch["attention_mask"][number, :length] = 1
        return batch
