"""What must hold of an accelerated model beside the unmodified one, whatever package they are of.

evaluate(model) gives a dict of tensors, loss(model) a number with a graph; both build their data anew.
"""

from __future__ import annotations

import copy
import io

import torch

import clebsch
from clebsch.convert.swap import is_accelerated


def accelerate_all(model):
    """The accelerated copy, of which something was accelerated and nothing left."""
    fast = clebsch.accelerate(model, strict=True)
    assert any(map(is_accelerated, fast.modules())) and not any(map(is_accelerated, model.modules()))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [name for name, _ in fast.named_modules()] == [name for name, _ in model.named_modules()]
    return fast


def assert_close(name, ours, theirs, tolerance):
    """Within `tolerance` of the largest number, which is taken to be 1e-3 at least."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
    if theirs.numel():
        scale = max(float(theirs.detach().abs().max()), 1e-3)
        error = float((ours.detach() - theirs.detach()).abs().max())
        assert error <= tolerance * scale, f"{name}: {error:.3g} of {scale:.3g}"


def assert_same_outputs(stock, fast, evaluate, tolerance):
    """All that an evaluation gives; it ran on our kernels."""
    theirs, ours = evaluate(stock), evaluate(fast)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert_close(name, ours[name], theirs[name], tolerance)
    assert_on_kernels(fast)


def assert_on_kernels(fast):
    """No module handed its last call to the code of its package."""
    reasons = {name: vars(module).get("_clebsch_reason") for name, module in fast.named_modules()}
    assert not any(reasons.values()), reasons


def assert_same_gradients(stock, fast, loss, tolerance):
    """Of every parameter, those without one included."""
    for model in (stock, fast):
        model.zero_grad()
        loss(model).backward()
    for (name, theirs), ours in zip(stock.named_parameters(), fast.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None), name
        if theirs.grad is not None:
            assert_close(name, ours.grad, theirs.grad, tolerance)


def assert_forces_are_gradients(energy, forces, positions, step=1e-4, tolerance=1e-6):
    """energy(positions) a number; forces what the model says at `positions`; three of its components."""
    generator = torch.Generator().manual_seed(0)
    for place in torch.randperm(positions.numel(), generator=generator)[:3]:
        moved = []
        for sign in (1, -1):
            there = positions.clone()
            there.view(-1)[place] += sign * step
            moved.append(float(energy(there)))
        estimate = -(moved[0] - moved[1]) / (2 * step)
        assert abs(estimate - float(forces.view(-1)[place])) <= tolerance * max(
            1.0, float(forces.abs().max())
        )


def assert_trains_alike(stock, fast, loss, steps=50, tolerance=1e-8):
    """The same curve of losses, with Adam."""
    curves = []
    for model in (stock, fast):
        model = copy.deepcopy(model)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        curve = []
        for _ in range(steps):
            optimiser.zero_grad()
            value = loss(model)
            value.backward()
            optimiser.step()
            curve.append(float(value.detach()))
        curves.append(torch.tensor(curve, dtype=torch.float64))
    assert curves[0][-1] < curves[0][0]
    assert ((curves[0] - curves[1]).abs() <= tolerance * curves[0].abs()).all()


def assert_round_trip(stock, loss, evaluate, tolerance):
    """Accelerate in place, train on with the same optimiser, restore, save, load: the package's own."""
    model = copy.deepcopy(stock)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for turn in range(4):
        if turn == 2:
            assert clebsch.accelerate(model, inplace=True, strict=True) is model
        optimiser.zero_grad()
        loss(model).backward()
        optimiser.step()
    trained = evaluate(model)
    assert clebsch.restore(model) is model
    for (name, part), (_, before) in zip(model.named_modules(), stock.named_modules(), strict=True):
        # Each torch.fx.GraphModule has a class of its own.
        assert type(part) is type(before) or isinstance(part, torch.fx.GraphModule), name
        assert not is_accelerated(part), name
        assert not [key for key in vars(part) if key.startswith("_clebsch_")], name
    fresh = copy.deepcopy(stock)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    fresh.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    for name, value in evaluate(fresh).items():
        assert_close(name, trained[name], value, tolerance)


def assert_copies(fast, evaluate, tolerance):
    """Copies and pickles are accelerated and give the same."""
    expected = evaluate(fast)
    saved = io.BytesIO()
    torch.save(fast, saved)
    saved.seek(0)
    for other in (copy.deepcopy(fast), torch.load(saved, weights_only=False)):
        assert list(map(is_accelerated, other.modules())) == list(map(is_accelerated, fast.modules()))
        for name, value in evaluate(other).items():
            assert_close(name, value, expected[name], tolerance)


def assert_explained(fast):
    """Every accelerated module has its line."""
    explanation = clebsch.explain(fast, measure=False)
    named = {entry.name for entry in explanation if (entry.advice or "").startswith("accelerated: ")}
    assert {name for name, part in fast.named_modules() if is_accelerated(part)} <= named
    assert "accelerated: " in str(explanation)
