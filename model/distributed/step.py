"""A step as the leader tells it to the other ranks: plain data, all that they need to do their part."""

from __future__ import annotations

import msgspec

from model.execution.forward_batch import SequenceSpan


class RankStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What every rank computes together. Sampling, grammars and requests are the leader's alone.

    Attributes:
        spans: the sequences' new tokens, in row order.
        sources: for each, where its token is among those that the step before sampled, else -1.
        is_replayed: whether the recorded decode steps run it.
        passes: rows of hidden states, of those that `spans` want logits for, that go through the output layer
            together; none when the step is replayed.
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
