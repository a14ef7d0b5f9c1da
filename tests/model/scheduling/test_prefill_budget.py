"""Chunk sizes follow time: on simulated machines the steps beside decodes converge on their bound."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.backends.torch_backend import TorchBackend
from model.contract.sampling_params import SamplingParams
from model.scheduling.block_manager import BlockManager
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import ScheduledBatch, Sequence, SequenceStatus
from model.scheduling.speculation import MAX_DRAFT_TOKENS, RowCosts, Speculator

MAX_STEP_S = 0.25


def make_scheduler(
    max_step_s: float = MAX_STEP_S, max_num_batched_tokens: int = 512, speculator: Speculator | None = None
) -> Scheduler:
    return Scheduler(
        BlockManager(4000, 16, False),
        max_num_seqs=64,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=32000,
        max_step_s=max_step_s,
        speculator=speculator,
    )


class Machine:
    """Runs what a scheduler plans; a step takes what its decodes and its prompt tokens cost."""

    def __init__(self, scheduler: Scheduler, decode_s: float, token_s: float, key_s: float = 0.0) -> None:
        self.scheduler = scheduler
        self.decode_s, self.token_s, self.key_s = decode_s, token_s, key_s
        self.num_added = 0
        self.times: list[float] = []

    def add(self, num_prompt_tokens: int, max_tokens: int = 30000, *, background: bool = False) -> Sequence:
        seq = Sequence(
            self.num_added,
            "request",
            [1] * num_prompt_tokens,
            SamplingParams(max_tokens=max_tokens),
            caller="batch" if background else "",
            is_background=background,
        )
        self.num_added += 1
        self.scheduler.add([seq])
        return seq

    def step(self, *, held_up_s: float = 0.0) -> ScheduledBatch:
        batch = self.scheduler.schedule()
        chunks = batch.entries[batch.num_decodes :]
        num_prompt_tokens = sum(entry.num_tokens for entry in chunks)
        step_s = self.decode_s + sum(e.num_tokens * (self.token_s + self.key_s * e.start) for e in chunks) + held_up_s
        self.scheduler.prefill_budget.note(batch.num_decodes, num_prompt_tokens, step_s)
        self.scheduler.update_after_schedule(batch)
        self.scheduler.update_from_output(batch, [[1] if entry.needs_sampling else [] for entry in batch.entries])
        self.times.append(step_s)
        return batch

    def prefill(self, seq: Sequence) -> list[ScheduledBatch]:
        batches = []
        while seq.is_prefilling and seq.status is not SequenceStatus.FINISHED:
            batches.append(self.step())
        return batches


@given(
    decode_ms=st.floats(1, 600),
    token_ms=st.floats(0.5, 14),
    times_known=st.floats(0.1, 10),
    num_known=st.integers(1, 600),
)
@example(decode_ms=30, token_ms=8, times_known=0.5, num_known=512)
@settings(max_examples=60)
def test_a_step_with_decodes_soon_takes_what_it_may(
    decode_ms: float, token_ms: float, times_known: float, num_known: int
) -> None:
    """Whatever was learned before, from another model's load or a busy minute."""
    scheduler = make_scheduler(max_num_batched_tokens=100_000)
    machine = Machine(scheduler, decode_ms / 1000, token_ms / 1000)
    machine.prefill(machine.add(4))
    machine.step()
    scheduler.prefill_budget.note(0, num_known, num_known * times_known * machine.token_s)
    prompt = machine.add(31_000)
    for _ in range(16):
        machine.step()
    if prompt.is_prefilling:
        bound = max(MAX_STEP_S, 1.25 * machine.decode_s)
        assert 0.9 * bound - 2 * machine.token_s < machine.times[-1] <= 1.01 * bound


def test_steps_of_no_time_are_no_trouble() -> None:
    machine = Machine(make_scheduler(), 0.0, 0.0)
    machine.prefill(machine.add(700))
    machine.step()
    machine.prefill(machine.add(2000))


def test_the_first_chunk_already_follows_the_prompt_before() -> None:
    machine = Machine(make_scheduler(), 0.03, 0.008)
    machine.prefill(machine.add(700))
    machine.step()
    prompt = machine.add(2000)
    machine.times.clear()
    machine.prefill(prompt)
    assert max(machine.times) <= 1.05 * MAX_STEP_S


def test_chunks_shrink_as_keys_to_read_become_more() -> None:
    machine = Machine(make_scheduler(), 0.03, 0.004, key_s=2e-6)
    machine.prefill(machine.add(700))
    machine.step()
    prompt = machine.add(12_000)
    machine.times.clear()
    batches = machine.prefill(prompt)
    assert max(machine.times) <= 1.15 * MAX_STEP_S
    assert batches[-2].num_tokens < batches[0].num_tokens / 3


def test_where_nothing_decodes_chunks_are_as_large_as_may_be() -> None:
    machine = Machine(make_scheduler(), 0.03, 0.008)
    first, second = machine.add(2000, max_tokens=1), machine.add(2000, max_tokens=1)
    sizes = [batch.num_tokens for batch in machine.prefill(first) + machine.prefill(second)]
    assert sizes[:-1] == [512] * (len(sizes) - 1)


def test_what_a_cpu_does_unasked_is_cheap_for_the_prompt_and_short_for_the_stream() -> None:
    """The 1.8B shape in Int4 on two cores: a decode takes 34 ms, a prompt token 7.9."""
    max_step_s = TorchBackend(torch.device("cpu")).default_max_step_ms() / 1000
    machine = Machine(make_scheduler(max_step_s), 0.034, 0.0079)
    machine.prefill(machine.add(700))
    machine.step()
    prompt = machine.add(2000)
    machine.times.clear()
    machine.prefill(prompt)
    assert sum(machine.times) <= 1.11 * 2000 * machine.token_s
    assert max(machine.times) <= 0.45


def test_no_bound_no_budget() -> None:
    machine = Machine(make_scheduler(max_step_s=0), 0.03, 0.008)
    machine.prefill(machine.add(700))
    prompt = machine.add(2000)
    assert machine.prefill(prompt)[0].num_tokens == 512


def test_one_step_that_something_held_up_changes_little() -> None:
    machine = Machine(make_scheduler(), 0.03, 0.008)
    machine.prefill(machine.add(700))
    machine.add(8000)
    for _ in range(6):
        machine.step()
    before = machine.step().num_tokens
    machine.step(held_up_s=5)
    assert machine.step().num_tokens >= 0.9 * before


def test_a_prompt_goes_on_beside_decodes_that_take_too_long_alone() -> None:
    machine = Machine(make_scheduler(), 2.0, 0.03)
    machine.prefill(machine.add(40))
    machine.step()
    prompt = machine.add(200)
    for _ in range(8):
        machine.step()
    assert prompt.num_computed_tokens >= 80


def test_who_is_left_out_of_a_step_waits_too() -> None:
    """Its grammar is late: it decodes again as soon as this step has ended."""
    machine = Machine(make_scheduler(), 0.03, 0.008)
    waiting = machine.add(40)
    machine.prefill(waiting)
    machine.step()
    machine.add(2000)
    assert machine.scheduler.schedule({waiting.seq_id}).num_tokens < 64


def test_for_the_background_no_prompt_is_cut() -> None:
    """Nobody waits for its tokens: a prompt beside it is computed as if it was alone, but for a row or some."""
    machine = Machine(make_scheduler(), 0.5, 0.008)
    for _ in range(3):
        machine.prefill(machine.add(40, background=True))
    machine.step()
    assert [batch.num_tokens for batch in machine.prefill(machine.add(1000))] == [512, 494]
    machine.add(40)
    for _ in range(3):
        machine.step()
    prompt = machine.add(1000)
    assert len(machine.prefill(prompt)) > 20, "for others it is"


def test_guesses_are_no_prompts() -> None:
    """Where a prompt may have a token or two a step, guesses are as many as pay."""
    speculator = Speculator(RowCosts((1, 24), (1.0, 1.0), 0.0), 8)
    machine = Machine(make_scheduler(speculator=speculator), 0.3, 0.05)
    seq = machine.add(40)
    speculator.start([seq], seq.token_ids[:], [])
    machine.prefill(seq)
    machine.step()
    assert machine.scheduler.prefill_budget.max_tokens(1) == 1
    assert machine.scheduler.schedule().num_tokens == 1 + MAX_DRAFT_TOKENS


def test_many_prompts_share_what_is_there() -> None:
    machine = Machine(make_scheduler(), 0.03, 0.008)
    machine.prefill(machine.add(700))
    machine.step()
    for _ in range(40):
        machine.add(100, max_tokens=1)
    machine.times.clear()
    for _ in range(20):
        machine.step()
    assert max(machine.times) <= 1.1 * MAX_STEP_S
