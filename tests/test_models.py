"""The potential as a function: symmetric, smooth, forces the gradient of the energy, one state_dict for both
sets of layers; and the parts around it."""

import dataclasses

import numpy as np
import pytest
import torch

from clebsch.backend import describe_plan
from clebsch.data import Frame
from clebsch.demo import training
from clebsch.models import Potential, PotentialConfig, fit_config, load_checkpoint, save_checkpoint
from clebsch.models.batch import collate, neighbours, prepare
from clebsch.models.checks import energy_conservation, equivariance_error
from clebsch.models.layer_sets import layer_set
from clebsch.models.radial import BesselBasis, polynomial_envelope
from clebsch.models.training import TrainingSettings, evaluate, learning_rate_factor, loss_function, train

SPECIES = (1, 6, 8)
CUTOFF = 3.0


def random_frame(num_atoms: int, seed: int, **extra) -> Frame:
    """Atoms at least 0.8 Angstrom apart, with arbitrary labels."""
    rng = np.random.default_rng(seed)
    positions: list[np.ndarray] = []
    while len(positions) < num_atoms:
        candidate = rng.uniform(-1.7, 1.7, 3)
        if all(np.linalg.norm(candidate - other) > 0.8 for other in positions):
            positions.append(candidate)
    numbers = rng.choice(SPECIES, num_atoms)
    return Frame(numbers, np.array(positions), float(rng.normal()), rng.normal(size=(num_atoms, 3)), **extra)


def random_structures(*sizes: int):
    return [prepare(random_frame(size, seed), SPECIES, CUTOFF) for seed, size in enumerate(sizes)]


def small_config(**changes) -> PotentialConfig:
    settings = dict(
        species=SPECIES,
        reference_energies=(-13.6, -1029.5, -2041.8),
        scale=1.3,
        num_neighbours=6.0,
        cutoff=CUTOFF,
        hidden="5x0e+2x0o+3x1o+1x1e+2x2e",
        num_layers=3,
        radial_hidden=8,
    )
    return PotentialConfig(**(settings | changes))


@pytest.fixture
def model() -> Potential:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    return Potential(small_config())


def without_references(model: Potential) -> Potential:
    """Differences of small numbers then keep all their digits."""
    model.config = dataclasses.replace(model.config, reference_energies=(0.0, 0.0, 0.0))
    return model


def slope(model: Potential, batch, direction: torch.Tensor, step: float = 1e-4) -> float:
    """Of the energy along a direction, by the central difference of fourth order."""
    with torch.no_grad():
        shifted = [batch.positions + multiple * step * direction for multiple in (-2, -1, 1, 2)]
        e = [float(model(batch, positions).sum()) for positions in shifted]
    return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)


def test_forces_are_minus_the_finite_difference_of_the_energy(model):
    batch = collate(random_structures(6, 4), torch.float64)
    _, forces = without_references(model).energy_and_forces(batch)
    axes = torch.eye(forces.numel()).view(-1, *forces.shape)
    numerical = -torch.tensor([slope(model, batch, axis) for axis in axes]).view_as(forces)
    assert (forces - numerical).abs().max() < 1e-8 * forces.abs().max()


def test_forces_of_the_demonstrations_model():
    """Its size decides which kernels run: channels, as in no small model."""
    torch.set_default_dtype(torch.float64)
    config = small_config(hidden=training.FULL.hidden, num_layers=training.FULL.num_layers)
    model = without_references(Potential(config))
    for interaction in model.interactions:
        plan = describe_plan(interaction.convolution.plan)
        assert (plan["forward"], plan["derivatives"]) == ("channels", "channels")
    batch = collate(random_structures(9, 4), torch.float64)
    _, forces = model.energy_and_forces(batch)
    for _ in range(4):
        direction = torch.randn(forces.shape)
        assert slope(model, batch, direction) == pytest.approx(
            -float((forces * direction).sum()), abs=1e-8 * float(forces.norm() * direction.norm())
        )


def test_gradients_of_the_energy_to_second_order():
    torch.set_default_dtype(torch.float64)
    model = without_references(
        Potential(small_config(hidden="2x0e+1x1o+1x2e", num_layers=2, radial_hidden=3))
    )
    batch = collate(random_structures(4), torch.float64)
    positions = batch.positions.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: model(batch, p), (positions,))
    assert torch.autograd.gradgradcheck(lambda p: model(batch, p), (positions,))


def test_gradient_of_the_training_loss_in_every_parameter(model):
    batch = collate(random_structures(5, 3), torch.float64)
    loss_function(without_references(model), batch, 0.7).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator)
        expected = float((parameter.grad * direction).sum())
        step, losses = 1e-5, []
        with torch.no_grad():
            for multiple in (1, -2):
                parameter.add_(multiple * step * direction)
                losses.append(float(loss_function(model, batch, 0.7)))
            parameter.add_(step * direction)
        numerical = (losses[0] - losses[1]) / (2 * step)
        assert numerical == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def test_the_hessian_is_symmetric(model):
    batch = collate(random_structures(5), torch.float64)
    hessian = torch.autograd.functional.hessian(lambda p: model(batch, p).sum(), batch.positions)
    hessian = hessian.reshape(15, 15)
    assert (hessian - hessian.T).abs().max() < 1e-12 * hessian.abs().max()


def test_equivariance_under_rotation_and_inversion(model):
    error = equivariance_error(model, random_structures(7, 5, 1), seed=3)
    assert error["energy"] < 1e-12
    assert error["forces"] < 1e-12


def test_invariance_under_translation_and_order_of_atoms(model):
    frame = random_frame(7, 5)
    order = np.random.default_rng(0).permutation(7)
    moved = Frame(frame.numbers[order], frame.positions[order] + 3.0, frame.energy, frame.forces[order])
    results = []
    for each in (frame, moved):
        batch = collate([prepare(each, SPECIES, CUTOFF)], torch.float64)
        results.append(without_references(model).energy_and_forces(batch))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-12)
    assert torch.allclose(results[0][1][order], results[1][1], rtol=1e-11, atol=1e-12)
    assert results[0][1].sum(dim=0).abs().max() < 1e-12


def test_a_batch_is_its_structures_one_by_one(model):
    structures = random_structures(6, 1, 3)
    energies, forces = model.energy_and_forces(collate(structures, torch.float64))
    single = [model.energy_and_forces(collate([each], torch.float64)) for each in structures]
    assert torch.allclose(energies, torch.cat([e for e, _ in single]), rtol=1e-13)
    assert torch.allclose(forces, torch.cat([f for _, f in single]), rtol=1e-11, atol=1e-13)


def test_a_lone_atom_has_no_edges_and_no_force(model):
    energies, forces = model.energy_and_forces(collate(random_structures(1), torch.float64))
    assert torch.isfinite(energies).all()
    assert (forces == 0).all()


def test_energy_is_smooth_where_a_neighbour_passes_the_cutoff(model):
    without_references(model)

    def pair(distance: float):
        frame = Frame(np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, distance]]), 0.0, np.zeros((2, 3)))
        return collate([prepare(frame, SPECIES, CUTOFF)], torch.float64)

    apart, _ = model.energy_and_forces(pair(CUTOFF + 1e-9))
    assert pair(CUTOFF + 1e-9).graph.num_edges == 0
    # The envelope vanishes with the third power of the distance to the cutoff, the waves with the first.
    near = [model.energy_and_forces(pair(CUTOFF - gap)) for gap in (1e-2, 1e-3)]
    changes = [float((energy - apart).abs()) for energy, _ in near]
    forces = [float(force.abs().max()) for _, force in near]
    assert 5e3 < changes[0] / changes[1] < 2e4
    assert 5e2 < forces[0] / forces[1] < 2e3


def test_energies_of_many_kiloelectronvolts_keep_their_digits_in_float32():
    model = Potential(small_config(reference_energies=(-1e5, -2e5, -3e5)))
    batch = collate(random_structures(4))
    exact = -1e5 * float((batch.species + 1).sum())
    assert model.dtype == torch.float32
    interaction = float(without_references(model)(batch).detach())
    model.config = small_config(reference_energies=(-1e5, -2e5, -3e5))
    assert float(model(batch).detach()) == pytest.approx(exact + interaction, rel=1e-14)


@pytest.mark.parametrize(("source", "target"), [("clebsch", "e3nn"), ("e3nn", "clebsch")])
def test_a_state_dict_serves_both_sets_of_layers(source, target):
    pytest.importorskip("e3nn")
    torch.set_default_dtype(torch.float64)
    models = [Potential(small_config(), layers) for layers in (source, target)]
    names = [[(name, p.shape) for name, p in model.named_parameters()] for model in models]
    assert names[0] == names[1]
    models[1].load_state_dict(models[0].state_dict())
    batch = collate(random_structures(6, 4), torch.float64)
    (energies, forces), (expected, expected_forces) = (m.energy_and_forces(batch) for m in models)
    assert torch.allclose(energies, expected, rtol=1e-12)
    assert (forces - expected_forces).abs().max() < 1e-11 * expected_forces.abs().max()
    gradients = []
    for model in models:
        loss_function(model, batch, 1.0).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-11 * gradients[1].abs().max()


def test_a_state_dict_that_does_not_fit_is_refused(model):
    state = model.state_dict()
    state["stray"] = torch.ones(2)
    del state["readout.layer0.weight"]
    with pytest.raises(RuntimeError, match=r"missing \['readout.layer0.weight'\], unexpected \['stray'\]"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Potential(small_config(hidden="6x0e+1x1o")).load_state_dict(model.state_dict())


def test_checkpoint_round_trip(model, tmp_path):
    torch.set_default_dtype(torch.float32)
    model = model.float()
    save_checkpoint(tmp_path / "model.pt", model)
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.config == model.config
    batch = collate(random_structures(5))
    assert torch.equal(loaded(batch), model(batch))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer_set("jax"), "layers must be one of clebsch, e3nn, got 'jax'"),
        (lambda: Potential(small_config(hidden="4x1o")), "hidden must contain 0e, got '4x1o'"),
        (lambda: prepare(random_frame(9, 0), (1, 8), 3.0), r"must be among \[1, 8\], got \[6\]"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_radial_basis_is_orthonormal_before_the_envelope():
    cutoff, count = 2.5, 20_000
    r = ((torch.arange(count) + 0.5) * cutoff / count).double()
    basis = BesselBasis(6, cutoff).double()(r) / polynomial_envelope(r / cutoff)[:, None]
    overlap = torch.einsum("ri,rj,r->ij", basis, basis, r * r) * cutoff / count
    assert (overlap - torch.eye(6)).abs().max() < 1e-6


def test_envelope_ends_with_two_zero_derivatives():
    u = torch.tensor([0.0, 1 - 1e-9, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    value = polynomial_envelope(u)
    (first,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u)
    assert value[0] == 1
    for each in (value, first, second):
        assert each[1:].abs().max() < 1e-6


def test_neighbours_of_a_molecule_are_all_close_pairs():
    positions = random_frame(12, 0).positions
    senders, receivers, shifts = neighbours(positions, 2.0)
    pairs = [
        (j, i)
        for i in range(12)
        for j in range(12)
        if i != j and np.linalg.norm(positions[i] - positions[j]) < 2.0
    ]
    assert list(zip(senders.tolist(), receivers.tolist())) == pairs
    assert not shifts.any()


def test_neighbours_in_a_small_periodic_cell_include_images_of_the_atom_itself():
    pytest.importorskip("ase")
    cell = np.array([[2.2, 0.1, 0.0], [0.0, 2.4, 0.3], [0.2, 0.0, 2.6]])
    positions = np.array([[0.1, 0.2, 0.3], [1.2, 1.1, 1.4]])
    pbc = np.array([True, True, False])
    senders, receivers, shifts = neighbours(positions, 3.0, cell, pbc)
    found = positions[senders] + shifts - positions[receivers]
    expected = [
        positions[j] + n * cell[0] + m * cell[1] - positions[i]
        for i in range(2)
        for j in range(2)
        for n in range(-4, 5)
        for m in range(-4, 5)
    ]
    expected = [v for v in expected if 0 < np.linalg.norm(v) < 3.0]
    assert np.allclose(sorted(map(tuple, found.round(9))), sorted(map(tuple, np.round(expected, 9))))


def test_reference_energies_are_the_least_squares_fit_by_composition():
    energies = {1: -0.5, 6: -37.8, 8: -75.0}
    frames = [random_frame(size, seed) for seed, size in enumerate((3, 4, 5, 6, 7))]
    frames = [dataclasses.replace(f, energy=sum(energies[z] for z in f.numbers.tolist())) for f in frames]
    structures = [prepare(f, SPECIES, CUTOFF) for f in frames]
    config = fit_config(frames, structures, cutoff=CUTOFF)
    assert config.species == SPECIES
    assert config.reference_energies == pytest.approx(tuple(energies.values()))
    assert config.scale == pytest.approx(np.sqrt(np.mean(np.concatenate([f.forces for f in frames]) ** 2)))
    # One composition only: any split will do, but the total is met.
    config = fit_config(frames[:1], structures[:1], cutoff=CUTOFF)
    total = sum(config.reference_energies[config.species.index(z)] for z in frames[0].numbers.tolist())
    assert total == pytest.approx(frames[0].energy)


def test_training_lowers_the_loss_and_repeats_itself():
    structures = random_structures(5, 5, 6, 4)
    histories = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Potential(small_config(reference_energies=(0.0, 0.0, 0.0), num_layers=2))
        settings = TrainingSettings(epochs=12, batch_size=2)
        histories.append(train(model, structures, structures[:2], settings))
    assert histories[0] == histories[1]
    assert histories[0][-1].loss < 0.7 * histories[0][0].loss
    errors, parity = evaluate(model, structures[:2])
    assert errors == histories[0][-1].validation
    assert parity.shape == (2, 30)
    assert errors.forces == pytest.approx(np.abs(parity[0] - parity[1]).mean())


def test_learning_rate_warms_up_and_ends_at_zero():
    factors = [learning_rate_factor(fraction) for fraction in np.linspace(0.001, 1, 200)]
    assert factors[0] < 0.1 and factors[-1] == pytest.approx(0) and 0.99 < max(factors) <= 1


def test_calculator_gives_the_energies_and_forces_of_the_model(model):
    ase = pytest.importorskip("ase")
    from clebsch.models.calculator import PotentialCalculator

    frame = random_frame(6, 2, cell=np.diag([4.0, 4.2, 4.4]), pbc=np.ones(3, dtype=bool))
    energies, forces = model.energy_and_forces(collate([prepare(frame, SPECIES, CUTOFF)], torch.float64))
    atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
    atoms.calc = PotentialCalculator(model)
    assert atoms.get_potential_energy() == pytest.approx(float(energies[0]))
    assert np.allclose(atoms.get_forces(), forces.numpy())
    atoms.positions[2] += frame.cell[0]  # the same crystal
    assert atoms.get_potential_energy() == pytest.approx(float(energies[0]))
    assert np.allclose(atoms.get_forces(), forces.numpy())
    atoms.symbols[0] = "Au"
    with pytest.raises(ValueError, match=r"got \[79\]"):
        atoms.get_potential_energy()


def test_dynamics_conserve_the_energy(model):
    pytest.importorskip("ase")
    # A gentle surface: what is tested is that forces belong to energies, not the stiffness of random weights.
    model.config = dataclasses.replace(model.config, scale=0.05, reference_energies=(0.0, 0.0, 0.0))
    result = energy_conservation(model, random_frame(5, 4), 200, seed=0, timestep=0.1, temperature=50.0)
    assert result["picoseconds"] == pytest.approx(0.02)
    assert result["fluctuation"] < 0.05
    assert abs(result["drift"]) < 5.0
