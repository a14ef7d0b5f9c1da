"""A step as the leader tells it to the other ranks: plain data, everything that they need to do their part."""

from __future__ import annotations

import msgspec

from model.execution.forward_batch import SequenceSpan


class RankStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The computation that all ranks share. Sampling, grammars and requests are the leader's alone.

    Attributes:
        spans: the sequences' new tokens, in row order.
        sources: for each span the place of its token among those that the step before sampled, else -1.
        is_replayed: whether recorded decode steps run it.
        passes: groups of rows that want logits and go through the output layer together; empty for a replayed step.
    """

    spans: list[SequenceSpan]
    sources: list[int]
    is_replayed: bool
    passes: list[list[int]]


_DECODER = msgspec.msgpack.Decoder(RankStep)


def decode_step(payload: bytes) -> RankStep:
    """Reads a frame's payload.

    Raises:
        msgspec.MsgspecError: it is not a step.
    """
    return _DECODER.decode(payload)
