"""How large a step may be, and how many of them may be under way: settings, or what the device prefers."""

from __future__ import annotations

from dataclasses import dataclass

from model.backends.base import Backend
from model.contract.engine_config import EngineConfig
from model.contract.parallel import Placement
from model.execution.row_costs import MAX_GUESSED_ROWS


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The same on all ranks.

    Attributes:
        max_step_ms: how long a step with prompts should take while others decode; 0 is any time.
        max_steps_ahead: steps that may be under way while another is planned.
        is_pipelined: those steps are on stages of the model, so no two of them may want the same sequence's next token.
        speculates: tokens are guessed ahead.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_ms: int
    max_steps_ahead: int
    is_pipelined: bool
    speculates: bool

    @classmethod
    def of(cls, config: EngineConfig, backend: Backend, place: Placement) -> StepLimits:
        """Returns the limits that an engine's settings and its device give."""
        max_steps_ahead = 0
        runs_ahead = backend.runs_ahead if config.run_ahead is None else config.run_ahead
        if config.run_ahead is not False:
            max_steps_ahead = place.num_stages - 1 or int(runs_ahead)
        is_pipelined = place.num_stages > 1
        is_overlapping = backend.runs_ahead if is_pipelined else max_steps_ahead > 0
        return cls(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens or backend.default_max_num_batched_tokens(),
            max_step_ms=backend.default_max_step_ms() if config.max_step_ms is None else config.max_step_ms,
            max_steps_ahead=max_steps_ahead,
            is_pipelined=is_pipelined,
            speculates=config.speculation == "auto" and not is_overlapping,
        )

    @property
    def max_num_sampled_rows(self) -> int:
        """The most tokens that a step samples: one a sequence, and one behind each guess."""
        return self.max_num_seqs + (MAX_GUESSED_ROWS if self.speculates else 0)
