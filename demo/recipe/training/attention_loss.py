"""An auxiliary loss that teaches a few attention heads where to look.

The places (hints) come from `attention_targets.py`. The loss of a head is the negative logarithm of its attention to
them, computed from its queries and keys alone. The architecture does not change; without hints nothing is computed.
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

# The (layer, head) that learns each look-up. The tool of a line must be known before a line can be chosen, and copying
# comes last. `copy_init.py` writes heads 0 and 1 of the early layers.
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
OF_PROMPTS = (TOOL_OF_LINE, WORD_OF_TOOL, IDLE_WORD)  # look-ups of prompt tokens, whose next token has no weight
# After the layer of these look-ups, the model's final norm and output layer should already yield the token found.
KNOWN_SHARE = {TOOL_OF_LINE: 0.05, WORD_OF_TOOL: 0.5, CHOSEN_TOOL: 2.0}


class _Lookup(NamedTuple):
    """Targets of one head: rows and queries [n], the places it should see [n, length], weights [n]."""

    head: int
    rows: Tensor
    queries: Tensor
    targets: Tensor
    weights: Tensor


class _Knowledge(NamedTuple):
    """Tokens that should be known after a layer: rows, places and token ids [n], weights [n]."""

    rows: Tensor
    places: Tensor
    ids: Tensor
    weights: Tensor


class AttentionLoss:
    """The loss of one batch's hints.

    Args:
        hints: [n, 6] int64: row, kind, query, first token to see, one past the last, the token to know or -1.
        ids: [batch, length].
        weights: [batch, length], see `QwenForTraining.loss`; a look-up has the weight of the token it helps to predict.

    Attributes:
        loss: the sum over the layers so far.
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
            if kind in KNOWN_SHARE:  # then each of its hints names a token
                self._knowledge.setdefault(layer, []).append(
                    _Knowledge(rows, queries, ids[rows, known], share * KNOWN_SHARE[kind])
                )

    def see(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Adds the loss of a layer's heads; q and k are [batch, heads, length, dim], after rotation."""
        for lookup in self._lookups.get(layer, []):
            if lookup.head >= q.shape[1]:
                continue  # the model has too few heads
            for row in lookup.rows.unique().tolist() if q.shape[0] > 1 else [0]:
                mine = lookup.rows == row
                queries = lookup.queries[mine]
                scores = (q[row, lookup.head, queries] @ k[row, lookup.head].T).float() / math.sqrt(q.shape[-1])
                past = torch.arange(k.shape[2], device=k.device) <= queries[:, None]
                everywhere = scores.masked_fill(~past, -math.inf).logsumexp(-1)
                there = scores.masked_fill(~(past & lookup.targets[mine]), -math.inf).logsumexp(-1)
                self.loss = self.loss + ((everywhere - there) * lookup.weights[mine]).sum()

    def read(self, layer: int, x: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """Adds the loss of what should be known after a layer.

        Args:
            layer: index of the layer.
            x: [batch, length, hidden], the layer's output.
            logits: the model's final norm and output layer.
        """
        for knowledge in self._knowledge.get(layer, []):
            each = F.cross_entropy(logits(x[knowledge.rows, knowledge.places]).float(), knowledge.ids, reduction="none")
            self.loss = self.loss + (each * knowledge.weights).sum()
