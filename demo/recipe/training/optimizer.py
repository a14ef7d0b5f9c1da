"""Muon for the matrices of the layers, AdamW for everything else.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by five steps of a
Newton-Schulz iteration. For a small model and few tokens it learns markedly more per step than AdamW. Matrices of one
shape are iterated together, so a step costs little beside the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from demo.recipe.training.data_parallel import ALONE, Peers

HEAD_SHARE = 0.2
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Returns nearly orthogonal matrices with the same singular vectors.

    Args:
        matrices: [n, rows, columns] float32.
        steps: number of iterations.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum. A stacked projection (q, k, v) is treated as three square matrices.

    Args:
        params: two-dimensional parameters.
        lr: step length, the same for every shape.
        momentum: decay of the running gradient.
        weight_decay: decoupled weight decay.
        peers: the processes that share the iterations.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        peers: Peers | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.peers = peers or ALONE

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters from their gradients."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                rows, columns = p.shape
                parts = 3 if rows == 3 * columns else 1
                by_shape.setdefault((rows // parts, columns), []).append(
                    (p, update.view(parts, rows // parts, columns))
                )
            stacks = [torch.cat([update for _, update in items]) for items in by_shape.values()]
            for stack, items in zip(self._orthogonalized(stacks), by_shape.values(), strict=True):
                stack *= max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
                at = 0
                for p, u in items:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(stack[at : at + len(u)].reshape(p.shape), alpha=-group["lr"])
                    at += len(u)

    def _orthogonalized(self, stacks: list[Tensor]) -> list[Tensor]:
        """Orthogonalises [n, rows, columns] stacks. Each process iterates a share of a stack; all get all results."""
        flat = torch.zeros(sum(s.numel() for s in stacks), device=stacks[0].device)
        results = [part.view(s.shape) for part, s in zip(flat.split([s.numel() for s in stacks]), stacks, strict=True)]
        for stack, result in zip(stacks, results, strict=True):
            begin, end = (len(stack) * i // self.peers.processes for i in (self.peers.rank, self.peers.rank + 1))
            if end > begin:
                result[begin:end] = orthogonalize(stack[begin:end])
        self.peers.add(flat)
        return results


def make_optimizers(
    model: nn.Module, muon_lr: float, adam_lr: float, peers: Peers | None = None
) -> list[torch.optim.Optimizer]:
    """Divides the parameters between Muon and AdamW.

    The output layer gets a much smaller learning rate than the embedding: its entries are a tenth as large, and Adam
    would turn the tiny gradient that every step has for every absent token into a full step of noise.

    Args:
        model: a `QwenForTraining`.
        muon_lr: learning rate of the layers' matrices.
        adam_lr: learning rate of the embedding, norms and biases; that of the output layer is `HEAD_SHARE` times this.
        peers: the other processes, if any.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    embedding = [p for n, p in model.named_parameters() if n.endswith("wte.weight")]
    head = [p for n, p in model.named_parameters() if n == "lm_head.weight"]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": embedding, "lr": adam_lr},
        {"params": head, "lr": adam_lr * HEAD_SHARE},
        {"params": vectors, "lr": adam_lr},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, fused=True)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr=muon_lr, peers=peers), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
