"""The training's attention against torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from demo.recipe.training.attention import STRIP, causal_attention


@pytest.mark.parametrize("length", [1, 7, STRIP, STRIP + 1, 2 * STRIP + 37])
def test_equal_to_the_fused_one(length: int) -> None:
    torch.manual_seed(length)
    ours = [torch.randn(2, 3, length, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    weights = torch.randn(2, 3, length, 16, dtype=torch.float64)
    a, b = causal_attention(*ours), F.scaled_dot_product_attention(*theirs, is_causal=True)
    torch.testing.assert_close(a, b)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_gradients_by_differences() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(causal_attention, inputs)
