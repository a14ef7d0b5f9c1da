"""Adapters' rows on a GPU (or Triton's interpreter): torch's numbers, and a row's own whatever the company."""

from __future__ import annotations

import torch

from model.adapters.low_rank import LowRankUpdate
from model.backends.cuda.low_rank import CudaLowRankTable, plan_adapter_table
from model.backends.cuda.operations import Operations
from model.backends.torch_low_rank import TorchLowRankTable, plan_adapter_rows
from model.contract.files.linears import QWEN2_LINEARS, linear_shapes
from model.contract.memory_plan import plan_memory
from model.distributed.shard import column_parallel
from model.execution.forward_batch import SequenceSpan
from tests.support.random_attention import CONFIG

HIDDEN = 48
CPU = torch.device("cpu")


def updates() -> list[list[LowRankUpdate]]:
    def update(first: int, outputs: int, rank: int) -> LowRankUpdate:
        return LowRankUpdate(first, torch.randn(rank, HIDDEN) * 0.2, torch.randn(outputs, rank) * 0.2, 0.7)

    return [[update(0, 3 * HIDDEN, 8)], [update(HIDDEN * i, HIDDEN, 20) for i in range(3)], [update(HIDDEN, HIDDEN, 5)]]


def test_rows_and_prompts_get_what_torch_gives_them(device: torch.device) -> None:
    table = CudaLowRankTable(Operations(device), HIDDEN, 3 * HIDDEN, 4, 20, 3, torch.float32, device)
    reference = TorchLowRankTable(3 * HIDDEN, 4, torch.float32, CPU)
    for slot, some in enumerate(updates()):
        table.put(slot, table.prepare(some)[0])
        reference.put(slot, reference.prepare(some)[0])
    company = [(1, 0), (2, -1), (1, 1), (33, 2), (3, 1), (1, 3), (40, -1), (32, 1)]
    spans = [SequenceSpan([0] * n, 0, 1.0, [], 1, slot) for n, slot in company]
    num_rows = sum(n for n, _ in company)
    x, out = torch.randn(num_rows, HIDDEN), torch.randn(num_rows, 3 * HIDDEN)
    plan, rows = plan_adapter_table(spans, device), plan_adapter_rows(spans, CPU)
    assert plan is not None and rows is not None and len(plan.chunks) == 2
    ours = table.add(out.clone().to(device), x.to(device), plan).cpu()
    torch.testing.assert_close(ours, reference.add(out.clone(), x, rows), atol=1e-4, rtol=1e-4)
    alone = plan_adapter_table([SequenceSpan([0], 0, 1.0, [], 1, 1)], device)
    assert alone is not None
    assert torch.equal(table.add(out[3:4].clone().to(device), x[3:4].to(device), alone).cpu()[0], ours[3])
    table.put(0, None)
    assert torch.equal(table.add(out.clone().to(device), x.to(device), plan).cpu()[0], out[0])


def test_parts_that_were_trained_apart_stay_apart_on_a_rank(device: torch.device) -> None:
    """A rank's share of c_attn is not three times as wide as its inputs, yet in three parts."""
    shard = column_parallel(HIDDEN, (HIDDEN,) * 3, 1, 2)
    assert shard is not None
    table = CudaLowRankTable(Operations(device), HIDDEN, shard.num_outputs, 2, 20, 3, torch.float32, device)
    reference = TorchLowRankTable(shard.num_outputs, 2, torch.float32, CPU)
    for slot, whole in enumerate(updates()[:2]):
        some = [part for update in whole for part in update.on(shard)]
        table.put(slot, table.prepare(some)[0])
        reference.put(slot, reference.prepare(some)[0])
    spans = [SequenceSpan([0] * n, 0, 1.0, [], 1, slot) for n, slot in ((1, 0), (2, 1), (33, 1))]
    x, out = torch.randn(36, HIDDEN), torch.randn(36, shard.num_outputs)
    plan, rows = plan_adapter_table(spans, device), plan_adapter_rows(spans, CPU)
    assert plan is not None and rows is not None
    ours = table.add(out.clone().to(device), x.to(device), plan).cpu()
    torch.testing.assert_close(ours, reference.add(out.clone(), x, rows), atol=1e-4, rtol=1e-4)


def test_steps_without_adapters_have_no_table(device: torch.device) -> None:
    assert plan_adapter_table([SequenceSpan([0], 0, 1.0, [], 1)], device) is None


def test_a_slot_takes_what_the_memory_plan_says(device: torch.device) -> None:
    """Queries, keys and values have factors of their own, whether an adapter does or not; ranks come in sixteens."""
    plan, num_bytes = plan_memory(CONFIG, dtype="bfloat16"), 0
    for name, (num_inputs, num_outputs) in linear_shapes(CONFIG).items():
        sizes = (num_inputs, num_outputs, 1, 20, len(QWEN2_LINEARS[name]))
        table = CudaLowRankTable(Operations(device), *sizes, torch.bfloat16, device)
        update = LowRankUpdate(0, torch.zeros(20, num_inputs), torch.zeros(num_outputs, 20), 1.0)
        num_bytes += table.prepare([update])[1]
    assert num_bytes * CONFIG.num_layers == plan.adapter_bytes(20)
