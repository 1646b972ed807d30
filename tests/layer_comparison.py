"""Two layers that should be one function: values, first and second derivatives, and copies."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["assert_compiles_whole", "assert_copies_compute_the_same", "assert_same_function"]


def assert_same_function(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    parameters: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ()),
    tolerance: float = 1e-12,
) -> None:
    """Values, and first and second derivatives along random directions, in float64.

    parameters: further operands, which ours and theirs hold themselves, with equal values.
    """
    inputs = [x.detach().requires_grad_() for x in inputs]
    results = []
    cotangents: list[Tensor] = []
    for function, held in zip((ours, theirs), parameters, strict=True):
        if not cotangents:
            out = function(*inputs)
            cotangents = [torch.randn_like(t) for t in (out, *inputs, *held)]
        results.append(_derivatives(function, [*inputs, *held], inputs, cotangents))
    for level, (mine, its) in enumerate(zip(*results, strict=True)):
        for a, b in zip(mine, its, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            scale = float(b.abs().max()) if b.numel() else 0.0
            assert not b.numel() or float((a - b).abs().max()) <= tolerance * max(scale, 1.0), level


def _derivatives(function, operands, inputs, cotangents):
    """The value, its gradients along cotangents[0], and the gradients of those along the others."""
    out = function(*inputs)
    zeros = [torch.zeros_like(t) for t in operands]
    if not out.requires_grad:  # e3nn's result of no path
        return [out], zeros, zeros
    first = _gradients(out, operands, cotangents[0], create_graph=True)
    contraction = sum((g * c).sum() for g, c in zip(first, cotangents[1:], strict=True))
    second = _gradients(contraction, operands) if contraction.requires_grad else zeros
    return [out.detach()], [g.detach() for g in first], second


def _gradients(out, operands, cotangent=None, create_graph=False):
    gradients = torch.autograd.grad(out, operands, cotangent, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, operands, strict=True)]


def assert_copies_compute_the_same(module: torch.nn.Module, *inputs: Tensor) -> None:
    """deepcopy, pickle and torch.save of the whole module, to the last bit."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    expected = module(*inputs)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert repr(other) == repr(module)
        assert torch.equal(other(*inputs), expected)


def assert_compiles_whole(module: torch.nn.Module, *inputs: Tensor) -> None:
    """One graph, with its backward, that computes the same."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for function in (module, compiled):
        given = [x.detach().requires_grad_() for x in inputs]
        out = function(*given)
        results.append((out, *torch.autograd.grad(out.sin().sum(), [*given, *module.parameters()])))
    torch.testing.assert_close(results[1], results[0])
    torch._dynamo.reset()
