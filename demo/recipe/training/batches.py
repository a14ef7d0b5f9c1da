"""Makes batches of documents: rows of token ids of similar length, the same in every run of a seed."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from demo.recipe.corpus.document import HEARD, encode_document
from demo.recipe.corpus.stream import make_document
from demo.recipe.training.attention_targets import find_hints
from model.contract.files.vocabulary import read_ranks
from model.contract.tokenizer import Tokenizer

EVEN_TOKENS = 64  # documents with more learned tokens get less weight per token, those with fewer more
# Tokens of questions and descriptions ("heard") teach words at first. Later they are two thirds of the loss and teach
# nothing more, so they count for a fifth. Only one in `stride` of them is learned, at `stride` times the weight: an
# eighth less work.
HEARD_DOCUMENTS = 120_000
HEARD_LATER = 0.2
HEARD_STRIDE, HEARD_STRIDE_LATER = 3, 6
LENGTH_RATIO = 1.35  # between the longest and the shortest row of a batch
Encoded = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


class Batch(NamedTuple):
    """Rows of similar length.

    Attributes:
        ids: [rows, length] int64.
        weights: [rows, length] float32, the weight of predicting each token.
        hints: [n, 6] int64, see `attention_loss.py`.
    """

    ids: Tensor
    weights: Tensor
    hints: Tensor

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""
        return Batch(*(t.to(device) for t in self))

    def split(self, rows: int) -> list[Batch]:
        """Splits the batch into batches of at most `rows` rows."""
        pieces = []
        for begin in range(0, len(self.ids), rows):
            mine = (self.hints[:, 0] >= begin) & (self.hints[:, 0] < begin + rows)
            hints = self.hints[mine] - torch.tensor([begin, 0, 0, 0, 0, 0])
            pieces.append(Batch(self.ids[begin : begin + rows], self.weights[begin : begin + rows], hints))
        return pieces


@lru_cache(maxsize=2)
def tokenizer_of(path: str) -> Tokenizer:
    """Reads a vocabulary, once per process."""
    return Tokenizer(read_ranks(Path(path)))


def encode_pool(seed: int, first: int, count: int, vocabulary: str, max_length: int) -> Encoded:
    """Encodes `count` documents from number `first` on as token ids, weights and hints, cut to `max_length`."""
    tokenizer = tokenizer_of(vocabulary)
    out: Encoded = []
    for number in range(first, first + count):
        ids, weights = encode_document(make_document(seed, number), tokenizer)
        balanced = _thinned(np.array(weights[:max_length], np.float32), number)
        balanced *= (EVEN_TOKENS / max(balanced.sum(), 1.0)) ** 0.5
        hints = find_hints(ids[:max_length], tokenizer)
        out.append((np.array(ids[:max_length], np.int32), balanced, hints))
    return out


def _thinned(weights: np.ndarray, number: int) -> np.ndarray:
    heard = np.flatnonzero((weights > 0) & (weights <= np.float32(HEARD)))
    later = number >= HEARD_DOCUMENTS
    stride = HEARD_STRIDE_LATER if later else HEARD_STRIDE
    kept = heard[number % stride :: stride]
    weights[kept] *= stride * (HEARD_LATER if later else 1.0)
    weights[np.setdiff1d(heard, kept, assume_unique=True)] = 0
    return weights


def pool_steps(documents: Encoded, step_tokens: int) -> list[list[Batch]]:
    """Groups documents, in order, into optimizer steps, so that every step sees the whole mixture.

    Steps with rows of one length would be simpler, but then one step is all small talk and the next all tools, and the
    model swings between the two. Instead a step is several batches, each with rows of similar length.

    Args:
        documents: the documents of a pool.
        step_tokens: the smallest number of tokens in a step.

    Returns:
        The batches of each step.
    """
    groups: list[list[int]] = [[]]
    tokens = 0
    for i, (ids, _, _) in enumerate(documents):
        groups[-1].append(i)
        tokens += len(ids)
        if tokens >= step_tokens and i + 1 < len(documents):
            groups.append([])
            tokens = 0
    if len(groups) > 1 and tokens < step_tokens // 2:
        rest = groups.pop()  # not `groups[-2] += groups.pop()`, which evaluates the index before the pop
        groups[-1] += rest
    return [_batches([documents[i] for i in group]) for group in groups]


def _batches(rows: Encoded) -> list[Batch]:
    rows = sorted(rows, key=lambda row: len(row[0]))
    groups: list[Encoded] = [[]]
    for row in rows:
        if groups[-1] and len(row[0]) > LENGTH_RATIO * len(groups[-1][0][0]) + 16:
            groups.append([])
        groups[-1].append(row)
    return [_pad(group) for group in groups]


def _pad(rows: Encoded) -> Batch:
    length = max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    weights = torch.zeros(len(rows), length)
    hints = [np.insert(row_hints.astype(np.int64), 0, row, axis=1) for row, (_, _, row_hints) in enumerate(rows)]
    for row, (row_ids, row_weights, _) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.from_numpy(row_ids.astype(np.int64))
        weights[row, : len(row_weights)] = torch.from_numpy(row_weights)
    return Batch(ids, weights, torch.from_numpy(np.concatenate(hints)))


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of a stream of batches.

    Attributes:
        seed: seed of the corpus.
        vocabulary: path of `qwen.tiktoken`.
        step_tokens: see `pool_steps`.
        max_length: longest document, in tokens; longer ones are cut.
        pool_documents: documents that are encoded together; some ten steps' worth.
        workers: processes that prepare pools ahead; 0 prepares them in this process.
    """

    seed: int
    vocabulary: str
    step_tokens: int
    max_length: int
    pool_documents: int = 256
    workers: int = 0


def stream(settings: StreamSettings, first: int) -> Generator[tuple[int | None, list[Batch]], None, None]:
    """Yields endless steps from a document on.

    Yields:
        The document to resume from (None in the middle of a pool), and the batches of the step.
    """
    for start, documents in _pools(settings, first):
        steps = pool_steps(documents, settings.step_tokens)
        for index, batches in enumerate(steps, start=1):
            yield start + settings.pool_documents if index == len(steps) else None, batches


def _pools(settings: StreamSettings, first: int) -> Iterator[tuple[int, Encoded]]:
    count = settings.pool_documents

    def arguments(start: int) -> tuple[int, int, int, str, int]:
        return settings.seed, start, count, settings.vocabulary, settings.max_length

    if not settings.workers:
        while True:
            yield first, encode_pool(*arguments(first))
            first += count
    context = multiprocessing.get_context("spawn")
    depth = settings.workers * 2
    with ProcessPoolExecutor(settings.workers, mp_context=context) as executor:
        ahead = deque(executor.submit(encode_pool, *arguments(first + i * count)) for i in range(depth))
        while True:
            documents = ahead.popleft().result()
            ahead.append(executor.submit(encode_pool, *arguments(first + depth * count)))
            yield first, documents
            first += count
