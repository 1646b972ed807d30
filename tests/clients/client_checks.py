"""What must hold of an accelerated model beside the unmodified one, whatever package they are of.

evaluate(model) gives a dict of tensors, loss(model) a number with a graph; both build their data anew.
"""

from __future__ import annotations

import copy
import io
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import clebsch
from another_device import count_waits, pretend_built, take_cpu_for_gpu
from clebsch.convert.swap import is_accelerated


def accelerate_all(model):
    """The accelerated copy, of which something was accelerated and nothing left."""
    fast = clebsch.accelerate(model, strict=True)
    assert any(map(is_accelerated, fast.modules())) and not any(map(is_accelerated, model.modules()))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [name for name, _ in fast.named_modules()] == [name for name, _ in model.named_modules()]
    return fast


def kind(module):
    """The class of a module; of torch.fx every module has one of its own."""
    return torch.fx.GraphModule if isinstance(module, torch.fx.GraphModule) else type(module)


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


def assert_same_on_gpu(stock, evaluate, loss, monkeypatch, tolerance, left=()):
    """With kernels for GPUs as if they were there, for tensors that are taken for a GPU's: the same results,
    and no wait that the package's own code does not have. left: names of modules whose own code runs there.
    """
    fast = accelerate_all(stock)
    pretend_built(monkeypatch)
    take_cpu_for_gpu(monkeypatch)
    theirs, ours = evaluate(stock), evaluate(fast)
    for name in theirs:
        assert_close(name, ours[name], theirs[name], tolerance)
    assert_same_gradients(stock, fast, loss, tolerance)
    reasons = {name: vars(module).get("_clebsch_reason") for name, module in fast.named_modules()}
    said = {name: reason for name, reason in reasons.items() if reason is not None}
    assert {name.rpartition(".")[2] for name in said} == set(left), said
    assert all("on a GPU" in reason for reason in said.values()), said
    assert count_waits(lambda: evaluate(fast)) <= count_waits(lambda: evaluate(stock))


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
    assert "clebsch.e3nn is enabled" not in str(explanation)  # whether it has run already or not


def own_forward(module):
    """A class of somebody's, with a forward that may do anything."""

    class Own(type(module)):
        def forward(self, *arguments, **keywords):
            return super().forward(*arguments, **keywords)

    module.__class__ = Own


class OwnProduct(torch.nn.Module):
    """In the place of one of e3nn's."""

    def __init__(self, product):
        super().__init__()
        self.product = product

    def forward(self, *arguments):
        return self.product(*arguments)


def no_coupling(product):
    """One of e3nn's, with a table of couplings that are none."""
    tables = {name: table for name, table in product.named_buffers() if "_w3j_" in name}
    tables[min(tables)].mul_(1.5)


def assert_left(model, name, reason, evaluate, tolerance=1e-10):
    """A module that is known but unlike what is expected: an error that names it with strict, else left,
    listed by `explain`, while others are accelerated; what comes out stays.
    """
    part = model.get_submodule(name)
    with pytest.raises(ValueError, match=re.escape(f"{name} ({type(part).__name__}): {reason}")):
        clebsch.accelerate(model, strict=True)
    fast = clebsch.accelerate(model)
    assert not is_accelerated(fast.get_submodule(name)) and any(map(is_accelerated, fast.modules()))
    reasons = {entry.name: entry.reasons for entry in clebsch.explain(fast, measure=False)}
    assert any(re.match(f"left to [a-z0-9_]+: {re.escape(reason)}", line) for line in reasons[name]), reasons
    theirs, ours = evaluate(model), evaluate(fast)
    for key in theirs:
        assert_close(key, ours[key], theirs[key], tolerance)


def _calls(model, evaluate):
    """{name: (arguments, keyword arguments)} of the first call of each module in an evaluation."""
    calls, handles = {}, []
    for name, part in model.named_modules():
        if not isinstance(part, torch.jit.ScriptModule):
            hook = partial(_keep, calls, name)
            handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
    evaluate(model)
    for handle in handles:
        handle.remove()
    return calls


def _keep(calls, name, module, arguments, keywords):
    calls.setdefault(name, ([_copied(one) for one in arguments], dict(keywords)))


def _copied(value):
    """Modules write to the dictionary that they are given."""
    return copy.copy(value) if isinstance(value, dict) else value


def _outcome(module, arguments, keywords):
    """The tensors that a call gives under autocast, by name or place; or its error."""
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(*map(_copied, arguments), **keywords)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(out, torch.Tensor):
        return {0: out}
    out = out if isinstance(out, dict) else dict(enumerate(out))
    return {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}


def assert_autocast_is_the_packages(stock, fast, evaluate):
    """Under autocast, of the whole model and of each accelerated module with the arguments that it gets
    without: the same bits, or the same error where the package has no way either; and a note.
    """
    assert {value.dtype for value in stock.parameters()} == {torch.float32}  # float64 is left by autocast
    # Of a copy: TorchScript optimises code by what it was given first, and then rounds otherwise.
    calls = _calls(clebsch.restore(clebsch.accelerate(stock)), evaluate)
    accelerated = [name for name, part in fast.named_modules() if is_accelerated(part) and name in calls]
    assert accelerated
    ran = 0
    for name in ["", *accelerated]:
        theirs, ours = (_outcome(model.get_submodule(name), *calls[name]) for model in (stock, fast))
        if isinstance(theirs, str):
            assert ours == theirs, name
        else:
            assert list(ours) == list(theirs), name
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
            ran += name != ""
    assert ran > len(accelerated) / 2
    reasons = {name: vars(part).get("_clebsch_reason") for name, part in fast.named_modules()}
    noted = {name: reason for name, reason in reasons.items() if reason is not None}
    assert set(noted.values()) == {"autocast is on"}, noted
    assert "left to" in str(clebsch.explain(fast, measure=False))


def assert_hooks_are_heard(stock, fast, evaluate, tolerance):
    """A hook on any module that the package calls, be it one that our kernels would not call, is called as
    often, and changes what it changes; e3nn's generated code has no modules of its own.
    """
    called = [name for name in _calls(stock, evaluate) if name]
    assert any(is_accelerated(fast.get_submodule(name)) for name in called)
    for name in called:
        heard, outputs = [], []
        for model in (stock, fast):
            part = model.get_submodule(name)
            if isinstance(part, torch.fx.GraphModule) or name.rpartition(".")[2].startswith("_compiled"):
                break
            handle = part.register_forward_hook(partial(_change, heard))
            outputs.append(evaluate(model))
            handle.remove()
        else:
            assert len(heard) > 0 and heard[: len(heard) // 2] == heard[len(heard) // 2 :], name
            for key, theirs in outputs[0].items():
                assert_close(f"{name}: {key}", outputs[1][key], theirs, tolerance)
    assert_same_outputs(stock, fast, evaluate, tolerance)


def _change(heard, module, arguments, out):
    heard.append(kind(module) if not is_accelerated(module) else type(module)._clebsch_original)
    return out * 1.5 if isinstance(out, torch.Tensor) and out.is_floating_point() else None


def _trajectory(atoms, calculator, timestep, steps):
    """Total energies and forces on a trajectory of velocity Verlet, and the energies of its shadow.

    The steps of velocity Verlet are, to fourth order in the timestep t, exact dynamics of
    H + t^2 (v.U''v / 12 - F.F/m / 24), with U''v = -dF/dt.
    """
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = atoms.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=timestep)
    energies, velocities, forces = [], [], []
    for _ in range(steps + 1):
        energies.append(atoms.get_total_energy())
        velocities.append(atoms.get_velocities())
        forces.append(atoms.get_forces())
        dynamics.run(1)
    energies, velocities, forces = map(np.array, (energies, velocities, forces))
    curvature = -(velocities[1:-1] * (forces[2:] - forces[:-2])).sum((1, 2)) / (2 * timestep)
    squares = (forces[1:-1] ** 2 / atoms.get_masses()[:, None]).sum((1, 2))
    shadow = energies[1:-1] + timestep**2 * (curvature / 12 - squares / 24)
    return energies, forces, shadow


def assert_conserves_energy(stock, fast, atoms, timestep, steps=30):
    """Dynamics of ASE calculators: of an accelerated model as of the unmodified one, along the whole way.

    The total energy varies by what the integrator does, of second order in the timestep. With that taken
    away, what is left is of fourth order, (frequency * timestep)^2 smaller: less than a hundredth at these
    timesteps. Forces that are not the gradient of the energy do work that no power of the timestep takes
    away: one part in ten thousand of the forces leaves more than a tenth.
    """
    theirs, ours = (_trajectory(atoms, calculator, timestep, steps) for calculator in (stock, fast))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-9)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-8 * np.abs(theirs[1]).max())
    energies, _, shadow = ours
    assert np.ptp(energies) > 1e-9 * np.abs(energies).max()  # more than rounding
    assert np.ptp(shadow) < 0.02 * np.ptp(energies), (np.ptp(shadow), np.ptp(energies))
