"""A loss that tells a few attention heads where to look.

The places come from `hints.py`. A head is told by the logarithm of the attention it pays to them, computed from its
queries and keys alone: nothing of the architecture changes, and where nobody gives hints nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.recipe.training.attention_targets import (
    CHOSEN_TOOL,
    COPIED,
    DECIDED,
    IDLE_WORD,
    TELLING_WORD,
    TOOL_OF_LINE,
    WORD_OF_TOOL,
)

# Which (layer, head) learns which look-up: whose line a token is in must be known before a line can be chosen, and the
# copying heads come last. Heads 0 and 1 of the early layers are those that `copy_init.py` writes.
HEADS = {
    TOOL_OF_LINE: (1, 3),
    WORD_OF_TOOL: (2, 3),
    IDLE_WORD: (2, 3),
    TELLING_WORD: (3, 2),
    CHOSEN_TOOL: (3, 3),
    DECIDED: (3, 3),
    COPIED: (4, 3),
}
SHARE = {
    TOOL_OF_LINE: 0.02,
    WORD_OF_TOOL: 0.4,
    IDLE_WORD: 0.1,
    TELLING_WORD: 0.5,
    CHOSEN_TOOL: 1.5,
    DECIDED: 0.7,
    COPIED: 0.6,
}
OF_PROMPTS = (TOOL_OF_LINE, WORD_OF_TOOL, IDLE_WORD)  # look-ups that serve no learned token
# After the layer of these look-ups the token they are about should be known: read off as at the end of the model.
KNOWN_SHARE = {TOOL_OF_LINE: 0.05, WORD_OF_TOOL: 0.5, CHOSEN_TOOL: 2.0}


class _Lookup(NamedTuple):
    """What one head is told: rows and queries [n], the places it should see [n, length], the weights [n]."""

    head: int
    rows: Tensor
    queries: Tensor
    targets: Tensor
    weights: Tensor


class _Knowledge(NamedTuple):
    """What should be known after a layer: rows, places and token ids [n], the weights [n]."""

    rows: Tensor
    places: Tensor
    ids: Tensor
    weights: Tensor


class Guide:
    """The hints of one batch, and the loss they lead to.

    Args:
        hints: [n, 6] int64: row, kind, query, first and one past the last token to see, the token to know or -1.
        ids: [batch, length].
        weights: [batch, length] of the tokens, see `QwenForTraining.loss`; a look-up weighs as the token it serves.

    Attributes:
        loss: grows as the layers pass by.
    """

    def __init__(self, hints: Tensor, ids: Tensor, weights: Tensor) -> None:
        self.loss = torch.zeros((), device=weights.device)
        self._lookups: dict[int, list[_Lookup]] = {}
        self._knowledge: dict[int, list[_Knowledge]] = {}
        length = weights.shape[1]
        for kind, (layer, head) in HEADS.items():
            chosen = hints[hints[:, 1] == kind]
            if not len(chosen):
                continue
            places, which = torch.unique(chosen[:, [0, 2, 5]], dim=0, return_inverse=True)
            edges = torch.zeros(len(places), length + 1, device=weights.device)
            one = torch.ones(len(chosen), device=weights.device)
            edges.index_put_((which, chosen[:, 3]), one, accumulate=True)
            edges.index_put_((which, chosen[:, 4]), -one, accumulate=True)
            rows, queries, known = places.unbind(1)
            share = weights[rows, queries + 1] if kind not in OF_PROMPTS else torch.ones_like(rows, dtype=weights.dtype)
            self._lookups.setdefault(layer, []).append(
                _Lookup(head, rows, queries, edges.cumsum(1)[:, :length] > 0, share * SHARE[kind])
            )
            if kind in KNOWN_SHARE:  # and then all of its hints say what
                self._knowledge.setdefault(layer, []).append(
                    _Knowledge(rows, queries, ids[rows, known], share * KNOWN_SHARE[kind])
                )

    def see(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Adds what a layer's heads miss; q and k are [batch, heads, length, dim], turned by their positions."""
        for lookup in self._lookups.get(layer, []):
            if lookup.head >= q.shape[1]:
                continue  # a model this narrow learns without
            for row in lookup.rows.unique().tolist() if q.shape[0] > 1 else [0]:
                mine = lookup.rows == row
                queries = lookup.queries[mine]
                scores = (q[row, lookup.head, queries] @ k[row, lookup.head].T).float() / math.sqrt(q.shape[-1])
                past = torch.arange(k.shape[2], device=k.device) <= queries[:, None]
                everywhere = scores.masked_fill(~past, -math.inf).logsumexp(-1)
                there = scores.masked_fill(~(past & lookup.targets[mine]), -math.inf).logsumexp(-1)
                self.loss = self.loss + ((everywhere - there) * lookup.weights[mine]).sum()

    def read(self, layer: int, x: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """Adds what is not known after a layer; x is [batch, length, hidden], `logits` the end of the model."""
        for knowledge in self._knowledge.get(layer, []):
            each = F.cross_entropy(logits(x[knowledge.rows, knowledge.places]).float(), knowledge.ids, reduction="none")
            self.loss = self.loss + (each * knowledge.weights).sum()
