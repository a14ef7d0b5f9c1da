"""The kernel for adapters on a CPU: torch's numbers, and for every row the same bits in any company."""

from __future__ import annotations

import pytest
import torch

from model.adapters.low_rank import LowRankUpdate
from model.backends.cpu.low_rank.table import PackedLowRankTable, make_packed_table
from model.backends.torch_low_rank import AdapterRows, TorchLowRankTable, plan_adapter_rows
from model.execution.forward_batch import SequenceSpan

CPU = torch.device("cpu")
# Rows and the slot of their adapter; the last slot is of one that leaves this layer alone.
COMPANY = [(1, 0), (2, -1), (7, 1), (1, 0), (3, 2), (4, -1), (1, 3), (9, 2)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def updates(hidden: int) -> list[list[LowRankUpdate]]:
    """What three adapters have for c_attn: one in the published layout, one in Qwen2's, one of keys alone."""

    def update(first: int, outputs: int, rank: int, seed: int) -> LowRankUpdate:
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((rank, hidden), (outputs, rank)))
        return LowRankUpdate(first, a, b, 0.7)

    return [
        [update(0, 3 * hidden, 8, 0)],
        [update(hidden * i, hidden, 24, 1 + i) for i in range(3)],
        [update(hidden, hidden, 64, 4)],
    ]


def plan(company: list[tuple[int, int]]) -> AdapterRows | None:
    return plan_adapter_rows([SequenceSpan([0] * n, 0, 1.0, [], 1, slot) for n, slot in company], CPU)


def packed_table(dtype: torch.dtype, hidden: int) -> PackedLowRankTable:
    table = make_packed_table(hidden, 3 * hidden, 4, dtype)
    if table is None:
        pytest.skip("no compiler for the CPU kernels")
    for slot, some in enumerate(updates(hidden)):
        table.put(slot, table.prepare(some)[0])
    return table


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("hidden", "threads"), [(256, 1), (256, 2), (36, 2)])  # 36 is what kernels take of nothing
def test_rows_get_what_torch_gives_them_alone_and_together(dtype: torch.dtype, hidden: int, threads: int) -> None:
    table, reference = packed_table(dtype, hidden), TorchLowRankTable(3 * hidden, 4, torch.float32, CPU)
    for slot, some in enumerate(updates(hidden)):
        reference.put(slot, reference.prepare(some)[0])
    num_rows = sum(n for n, _ in COMPANY)
    x, out = torch.randn(num_rows, hidden).to(dtype), torch.randn(num_rows, 3 * hidden).to(dtype)
    rows = plan(COMPANY)
    assert rows is not None
    torch.set_num_threads(threads)
    try:
        together = table.add(out.clone(), x, rows)
    finally:
        torch.set_num_threads(1)
    exact = reference.add(out.float().clone(), x.float(), rows)
    assert together.dtype == dtype
    torch.testing.assert_close(together.float(), exact, atol=TOLERANCE[dtype], rtol=1e-2)
    row = 0
    for count, slot in COMPANY:
        for _ in range(count):
            alone = out[row : row + 1].clone()
            single = plan([(1, slot)])
            if single is not None:
                alone = table.add(alone, x[row : row + 1], single)
            assert torch.equal(alone[0], together[row])
            row += 1


def test_a_slot_that_was_emptied_adds_nothing() -> None:
    table = packed_table(torch.float32, 256)
    rows = plan([(2, 1), (1, 0)])
    assert rows is not None
    table.put(1, None)
    out = table.add(torch.zeros(3, 768), torch.ones(3, 256), rows)
    assert not out[:2].any() and out[2].any()
    table.put(0, None)
    table.put(2, None)
    assert not table.add(torch.zeros(3, 768), torch.ones(3, 256), rows).any()
