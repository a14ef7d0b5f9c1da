"""How one sequence is to be sampled: all that the loop knows of a request's options.

Pure. Values are validated where requests come in (server/conversion); the loop trusts them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one sequence; defaults mean "off".

    Attributes:
        max_tokens: the most tokens to generate; 0 scores the prompt only.
        min_tokens: before this many tokens, ids in `eos_token_ids` and `stop_token_ids` cannot be sampled.
        temperature: 0 is greedy.
        top_p: between 0 and 1; 1 is off.
        top_k: 0 is off.
        min_p: from 0 to 1; 0 is off.
        presence_penalty: subtracted once from the logit of each id already generated.
        frequency_penalty: subtracted from the logit of each generated id, times its count.
        repetition_penalty: logits of ids in prompt or output are divided (positive) or multiplied (negative) by it.
        logit_bias: pairs (token id, value added to its logit).
        seed: starts this sequence's own random stream; the same seed gives the same reply whatever else runs.
            None draws one at random.
        num_logprobs: None is off; k reports each sampled token's log-probability and the k most likely.
            Log-probabilities are of the model's own distribution: after penalties and bias would surprise
            those who score with them, so they are taken from the raw logits.
        num_prompt_logprobs: the same for every prompt token but the first (echo).
        eos_token_ids: end the sequence unless `ignore_eos`.
        stop_token_ids: end the sequence, asked for by the request.
        ignore_eos: `eos_token_ids` do not end it (and may be sampled).
        grammar: constrains every token and ends the sequence when complete; llguidance's Lark dialect or JSON form.
            With one, `min_tokens` has no say.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: str | None = None

    @property
    def ending_token_ids(self) -> tuple[int, ...]:
        """Ids that end the sequence when sampled."""
        return self.stop_token_ids if self.ignore_eos else self.eos_token_ids + self.stop_token_ids
