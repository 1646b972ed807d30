"""What one call does: forward alone, with its gradients, or with the gradients of those (training on forces).

Each step includes the ones before it. A function maps tensors to one tensor; every tensor is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

Function = Callable[..., torch.Tensor]
FORWARD, BACKWARD, DOUBLE = "forward", "with backward", "with double backward"


def forward(function: Function, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
    inputs = [tensor.detach() for tensor in inputs]
    return lambda: function(*inputs)


def backward(function: Function, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    cotangent = _random_like(function(*(tensor.detach() for tensor in inputs)))
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def double_backward(function: Function, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    cotangent = _random_like(function(*(tensor.detach() for tensor in inputs))).requires_grad_()
    tangents = [_random_like(tensor) for tensor in inputs]

    def step():
        gradients = torch.autograd.grad(function(*leaves), leaves, cotangent, create_graph=True)
        return torch.autograd.grad(gradients, [*leaves, cotangent], tangents)

    return step


def _random_like(tensor: torch.Tensor) -> torch.Tensor:
    """The same in every call on a device; made there, as a published result may have a billion numbers."""
    torch.manual_seed(7)
    return torch.randn(tensor.shape, dtype=tensor.dtype, device=tensor.device)


STEPS = {FORWARD: forward, BACKWARD: backward, DOUBLE: double_backward}


TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the norm; what rounds to float32 is not float64


def results(step: str, function: Function, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """All that a call of this step gives."""
    found = STEPS[step](function, inputs)()
    return [t.detach() for t in ([found] if isinstance(found, torch.Tensor) else found)]


def difference(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> float:
    """The largest of their distances, each over the norm of theirs; not a number if anything is not."""
    parts = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(ours, theirs, strict=True)]
    return max(parts, key=lambda part: (part != part, part))


def require_same(name: str, ours: torch.Tensor, peer: torch.Tensor) -> None:
    """A wrong result has no speed: stop where two implementations differ by more than `TOLERANCE`."""
    error = difference([ours], [peer])
    if not error <= TOLERANCE[ours.dtype]:
        raise AssertionError(f"{name}: clebsch and its peer differ by {error:.2g} of the norm, not timed")
