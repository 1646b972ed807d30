"""SevenNet's models, trained and random, accelerated beside themselves."""

import copy
import csv
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sevenn", reason="sevenn is not installed")
pytest.importorskip("ase", reason="ase is not installed")

import ase.io
import client_checks
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.units import fs
from e3nn.o3 import Irreps
from sevenn import _const
from sevenn import _keys as KEY
from sevenn.calculator import SevenNetCalculator
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn.convolution import IrrepsConvolution, IrrepsScatterGatterFusedConvolution
from sevenn.train.dataload import unlabeled_atoms_to_graph
from sevenn.util import load_checkpoint

import clebsch
from clebsch.convert import sevennet_command
from clebsch.convert.swap import is_accelerated

TRAINED = ("7net-0", "7net-l3i5")
CUTOFF = 5.0


def alloy(repeat=1, seed=0):
    """Four atoms of fcc Cu3Al, or more, off their places."""
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
    atoms.symbols[0] = "Al"
    atoms = atoms * (repeat, 1, 1)
    atoms.positions += 0.1 * np.random.default_rng(seed).standard_normal((len(atoms), 3))
    return atoms


STRUCTURES = {
    "alloy": [alloy()],
    "one atom, no edges": [Atoms("Cu")],
    "a dimer and isolated atoms": [Atoms("CuAlCu2", [[0, 0, 0], [2.3, 0.3, 0], [0, 30, 0], [0, 0, 60]])],
    "self images": [bulk("Cu", "fcc", a=3.7)],
    "batch": [alloy(2), Atoms("Al"), bulk("Cu", "fcc", a=3.7), Atoms("CuAl", [[0, 0, 0], [0, 0, 2.5]])],
}


def batch(structures, dtype):
    """What SevenNet's loader makes of them, in any dtype."""
    graphs = [unlabeled_atoms_to_graph(atoms, CUTOFF) for atoms in structures]
    first = np.cumsum([0] + [len(atoms) for atoms in structures])
    edges = [torch.as_tensor(g[KEY.EDGE_IDX]).reshape(2, -1).long() + n for g, n in zip(graphs, first)]
    vectors = [torch.as_tensor(g[KEY.EDGE_VEC], dtype=dtype).reshape(-1, 3) for g in graphs]
    numbers = torch.cat([torch.as_tensor(atoms.numbers) for atoms in structures])
    counts = torch.tensor([len(atoms) for atoms in structures])
    return {
        KEY.NODE_FEATURE: numbers,
        KEY.ATOMIC_NUMBERS: numbers,
        KEY.POS: torch.as_tensor(np.concatenate([atoms.positions for atoms in structures]), dtype=dtype),
        KEY.EDGE_IDX: torch.cat(edges, dim=1),
        KEY.EDGE_VEC: torch.cat(vectors),
        KEY.CELL_VOLUME: torch.tensor([abs(atoms.cell.volume) for atoms in structures], dtype=dtype),
        KEY.NUM_ATOMS: counts,
        KEY.BATCH: torch.repeat_interleave(torch.arange(len(structures)), counts),
    }


def evaluation(structures, dtype, training=False):
    """evaluate(model): energies, forces, stresses."""

    def evaluate(model):
        model.train(training)
        out = model(batch(structures, dtype))
        names = {"energy": KEY.PRED_TOTAL_ENERGY, "forces": KEY.PRED_FORCE, "stress": KEY.PRED_STRESS}
        found = {name: out[key] for name, key in names.items()}
        # Divided by the volume, which has a floor where there is no cell.
        found["stress"] = found["stress"] * out[KEY.CELL_VOLUME].unsqueeze(-1)
        return found

    return evaluate


def loss_of(structures, dtype):
    """loss(model): of energies, forces and stresses against numbers of no meaning."""

    def loss(model):
        out = evaluation(structures, dtype, training=True)(model)
        counts = torch.tensor([len(atoms) for atoms in structures])
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(out["forces"].shape, dtype=torch.float64, generator=generator).to(dtype)
        energies = ((out["energy"] / counts + 3.5) ** 2).mean()
        return energies + (out["forces"] - 0.1 * noise).pow(2).mean() + 1e-3 * out["stress"].pow(2).mean()

    return loss


def features_in_double(module, arguments, data):
    """SevenNet makes one-hot rows of float32 whatever the model."""
    for key in (KEY.NODE_FEATURE, KEY.NODE_ATTR):
        data[key] = data[key].double()


def in_float64(build):
    """Built so: constants of e3nn's code keep the type that they were made in."""
    torch.set_default_dtype(torch.float64)
    try:
        return build().double()
    finally:
        torch.set_default_dtype(torch.float32)


def in_double(build):
    """A model of float64 throughout."""
    model = in_float64(build)
    model.onehot_idx_to_onehot.register_forward_hook(features_in_double)
    return model


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    return load_checkpoint(request.param).build_model()


@pytest.fixture(scope="module", params=TRAINED)
def trained_in_double(request):
    checkpoint = load_checkpoint(request.param)
    model = in_double(lambda: build_E3_equivariant_model(checkpoint.config))
    # Those of a checkpoint are rounded to float32.
    tables = {name: table for name, table in model.state_dict().items() if "_w3j_" in name}
    model.load_state_dict({**checkpoint.build_model().state_dict(), **tables})
    return model


@pytest.fixture(scope="module")
def random_model():
    """Both parities, degrees up to 3, one-hot products in the self-connection, biases."""
    return in_double(make_random)


def make_random(**changes):
    torch.manual_seed(0)
    config = copy.deepcopy(_const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)
    config |= {
        KEY.CUTOFF: CUTOFF,
        KEY.NODE_FEATURE_MULTIPLICITY: 6,
        KEY.LMAX: 3,
        KEY.NUM_CONVOLUTION: 2,
        KEY.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: [9],
        KEY.CONV_DENOMINATOR: 5.0,
        KEY.TRAIN_DENOMINTAOR: True,
        KEY.USE_BIAS_IN_LINEAR: True,
        KEY.SELF_CONNECTION_TYPE: "nequip",
        KEY.TYPE_MAP: {13: 0, 29: 1},
        KEY.NUM_SPECIES: 2,
        KEY.CHEMICAL_SPECIES: ["Al", "Cu"],
        KEY.SHIFT: 0.0,
        KEY.SCALE: 1.0,
        **changes,
    }
    return build_E3_equivariant_model(config)


@pytest.mark.parametrize("name", STRUCTURES)
def test_energies_forces_stresses(trained, name):
    fast = client_checks.accelerate_all(trained)
    client_checks.assert_same_outputs(trained, fast, evaluation(STRUCTURES[name], torch.float32), 1e-4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_energies_forces_stresses_in_float64(trained_in_double, name):
    fast = client_checks.accelerate_all(trained_in_double)
    evaluate = evaluation(STRUCTURES[name], torch.float64)
    client_checks.assert_same_outputs(trained_in_double, fast, evaluate, 1e-10)


@pytest.mark.parametrize("name", STRUCTURES)
def test_of_both_parities_and_with_one_hot_products(random_model, name):
    stock, fast = random_model, client_checks.accelerate_all(random_model)
    structures = STRUCTURES[name]
    client_checks.assert_same_outputs(stock, fast, evaluation(structures, torch.float64), 1e-10)
    client_checks.assert_same_gradients(stock, fast, loss_of(structures, torch.float64), 1e-9)


def test_as_on_a_gpu(random_model, monkeypatch):
    operands = (of(STRUCTURES["batch"], torch.float64) for of in (evaluation, loss_of))
    client_checks.assert_same_on_gpu(random_model, *operands, monkeypatch, 1e-9, left=["fc_tensor_product"])


@pytest.mark.parametrize("name", ["alloy", "batch"])
def test_gradients_of_parameters(trained_in_double, name):
    stock, fast = trained_in_double, client_checks.accelerate_all(trained_in_double)
    client_checks.assert_same_gradients(stock, fast, loss_of(STRUCTURES[name], torch.float64), 1e-10)


def test_gradients_of_parameters_in_float32(trained):
    fast = client_checks.accelerate_all(trained)
    client_checks.assert_same_gradients(trained, fast, loss_of([alloy(2)], torch.float32), 1e-3)


def test_forces_are_gradients(trained_in_double):
    fast = client_checks.accelerate_all(trained_in_double)
    atoms = alloy()

    def at(positions):
        moved = atoms.copy()
        moved.positions = positions.numpy()
        return evaluation([moved], torch.float64)(fast)

    positions = torch.as_tensor(atoms.positions)
    forces = at(positions)["forces"].detach()
    client_checks.assert_forces_are_gradients(lambda there: at(there)["energy"], forces, positions)


@pytest.mark.slow
def test_fine_tuning_follows_the_curve(trained_in_double):
    stock, fast = trained_in_double, client_checks.accelerate_all(trained_in_double)
    client_checks.assert_trains_alike(stock, fast, loss_of([alloy(), alloy(seed=1)], torch.float64))


def test_fine_tuning_of_a_random_model(random_model):
    stock, fast = random_model, client_checks.accelerate_all(random_model)
    client_checks.assert_trains_alike(stock, fast, loss_of([alloy(), alloy(seed=1)], torch.float64))


def test_accelerate_train_restore_save_load(trained_in_double):
    structures = [alloy()]
    loss, evaluate = (of(structures, torch.float64) for of in (loss_of, evaluation))
    client_checks.assert_round_trip(trained_in_double, loss, evaluate, 1e-10)


def test_copies_and_pickles(trained):
    client_checks.assert_copies(
        client_checks.accelerate_all(trained), evaluation([alloy()], torch.float32), 0
    )


def test_what_is_said(trained):
    fast = client_checks.accelerate_all(trained)
    client_checks.assert_explained(fast)
    text = str(clebsch.explain(fast, measure=False))
    assert "0_convolution: sevenn IrrepsConvolution" in text
    assert "gathers, multiplies and sums at receivers in one kernel" in text


def test_rows_and_messages_and_whole_weights_do_not_exist(trained):
    """Nothing with a row for each edge is wider than the harmonics and the radial net."""
    fast = client_checks.accelerate_all(trained)
    structures = [alloy(2)]
    edges = batch(structures, torch.float32)[KEY.EDGE_IDX].shape[1]
    widths = {}
    for name, model in (("stock", trained), ("fast", fast)):
        with torch.profiler.profile(record_shapes=True) as profile:
            evaluation(structures, torch.float32)(model)
        shapes = [
            shape for event in profile.events() for shape in event.input_shapes or () if len(shape) == 2
        ]
        widths[name] = max(width for rows, width in shapes if rows == edges)
    assert widths["stock"] > 500
    assert widths["fast"] <= 64


def test_in_a_calculator(trained):
    """The one line of a user's script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calculators = [SevenNetCalculator(copy.deepcopy(trained), device="cpu") for _ in range(2)]
    calculators[1].model = clebsch.accelerate(calculators[1].model, strict=True)
    found = []
    for calculator in calculators:
        atoms = alloy(2)
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for theirs, ours in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    client_checks.assert_on_kernels(calculators[1].model)


class InDouble(Calculator):
    """SevenNet's own makes float32 of positions."""

    implemented_properties = ("energy", "forces")

    def __init__(self, model):
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        out = evaluation([atoms], torch.float64)(self.model)
        self.results = {"energy": float(out["energy"].sum()), "forces": out["forces"].numpy(force=True)}


@pytest.mark.parametrize("trained_in_double", TRAINED[:1], indirect=True)
def test_dynamics_conserve_energy(trained_in_double):
    fast = client_checks.accelerate_all(trained_in_double)
    calculators = [InDouble(model) for model in (trained_in_double, fast)]
    client_checks.assert_conserves_energy(*calculators, alloy(), 1 * fs, steps=15)
    client_checks.assert_on_kernels(fast)


def test_a_model_of_several_fidelities():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = SevenNetCalculator("7net-mf-0", modal="R2SCAN", device="cpu")
    forces = []
    for model in (stock.model, clebsch.accelerate(stock.model, strict=True)):
        stock.model, atoms = model, alloy()
        atoms.calc = stock
        stock.reset()
        forces.append(atoms.get_forces())
    assert np.abs(forces[0] - forces[1]).max() <= 1e-5 * np.abs(forces[0]).max()


@pytest.mark.parametrize("hooked", [False, True])
def test_ghosts_of_another_process(hooked):
    """Edges name local atoms and ghosts; only the rows of local atoms remain. A hook takes SevenNet's way."""

    def build():
        return IrrepsConvolution(
            Irreps("3x0e+2x1o"), Irreps("1x0e+1x1o+1x2e"), Irreps("0e+1o+1e+2e"), [4, 8],
            weight_layer_act=torch.nn.functional.silu, denominator=3.0,
            lazy_layer_instantiate=False, is_parallel=True,
        )  # fmt: skip

    stock = in_float64(build)
    fast = clebsch.accelerate(stock, strict=True)
    heard = []
    if hooked:
        fast.convolution.register_forward_hook(lambda *_: heard.append(1))
    results = []
    for module in (stock, fast):
        generator = torch.Generator().manual_seed(1)
        sizes = ((3, 9), (2, 9), (7, 9), (7, 4))
        given = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
        given = [value.requires_grad_() for value in given]
        out = module(
            {
                KEY.NODE_FEATURE: given[0],
                KEY.NODE_FEATURE_GHOST: given[1],
                KEY.EDGE_ATTR: given[2],
                KEY.EDGE_EMBEDDING: given[3],
                KEY.EDGE_IDX: torch.tensor([[0, 1, 2, 0, 0, 1, 1], [4, 3, 3, 1, 2, 0, 4]]),
                KEY.NLOCAL: torch.tensor([3]),
            }
        )[KEY.NODE_FEATURE]
        grads = torch.autograd.grad(out.pow(3).sum(), [*given, *module.weight_nn.parameters()])
        results.append((out, *grads))
    assert results[0][0].shape[0] == 3 and len(heard) == hooked
    for index, (theirs, ours) in enumerate(zip(*results, strict=True)):
        client_checks.assert_close(str(index), ours, theirs, 1e-12)


def replace_product(convolution):
    convolution.convolution = client_checks.OwnProduct(convolution.convolution)


@pytest.mark.parametrize(
    "name, harm, reason",
    [
        (
            "1_convolution",
            client_checks.own_forward,
            "client_checks.own_forward.<locals>.Own has a forward of",
        ),
        ("1_convolution", replace_product, "its product is a OwnProduct, not one of e3nn's"),
        ("1_convolution.convolution", client_checks.no_coupling, "_compiled_main_left_right._w3j_1_1_"),
        ("1_equivariant_gate.gate", client_checks.own_forward, "client_checks.own_forward.<locals>.Own has"),
    ],
)
def test_what_is_unlike_the_expected_is_left(name, harm, reason):
    stock = in_double(lambda: make_random(**{KEY.NUM_CONVOLUTION: 3}))
    harm(stock.get_submodule(name))
    client_checks.assert_left(stock, name, reason, evaluation([alloy()], torch.float64))


def test_autocast_is_sevennets():
    stock = make_random()
    evaluate = evaluation([alloy()], torch.float32)
    client_checks.assert_autocast_is_the_packages(stock, client_checks.accelerate_all(stock), evaluate)


def test_all_hooks_are_heard(random_model):
    fast = client_checks.accelerate_all(random_model)
    evaluate = evaluation([alloy()], torch.float64)
    client_checks.assert_hooks_are_heard(random_model, fast, evaluate, 1e-10)


def test_what_is_left():
    arguments = (Irreps("2x0e"), Irreps("1x0e"), Irreps("0e"), [4, 8], torch.nn.functional.silu)
    lazy = IrrepsConvolution(*arguments)
    with pytest.raises(ValueError, match=r"model \(IrrepsConvolution\): its layers are not made yet"):
        clebsch.accelerate(lazy, strict=True)

    class Fused(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()

    fused = IrrepsScatterGatterFusedConvolution(*arguments)
    fused.convolution_cls = Fused
    fused.instantiate()
    with pytest.raises(ValueError, match="its convolution is fused by Fused"):
        clebsch.accelerate(fused, strict=True)
    assert not is_accelerated(clebsch.accelerate(fused))


def test_what_the_kernel_does_not_take_is_sevennets():
    """bfloat16 has no kernel; two digits."""
    stock = make_random().bfloat16()
    stock.onehot_idx_to_onehot.register_forward_hook(features_in_bfloat16)
    fast = clebsch.accelerate(stock, strict=True)
    energies = [evaluation([alloy()], torch.bfloat16)(model)["energy"] for model in (stock, fast)]
    client_checks.assert_close("energy", *energies, 2e-2)
    assert "bfloat16" in vars(getattr(fast, "0_convolution").convolution)["_clebsch_reason"]


def features_in_bfloat16(module, arguments, data):
    for key in (KEY.NODE_FEATURE, KEY.NODE_ATTR):
        data[key] = data[key].bfloat16()


def test_a_model_that_cannot_be_copied():
    """TorchScript's functions, of SevenNet's softplus."""
    model = make_random(**{KEY.ACTIVATION_RADIAL: "ssp"})
    message = (
        "accelerate: model cannot be copied (ScriptFunction cannot be pickled); "
        "inplace=True changes the model itself"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        clebsch.accelerate(model)
    evaluate = evaluation(STRUCTURES["batch"], torch.float32)
    theirs = evaluate(model)
    assert clebsch.accelerate(model, inplace=True, strict=True) is model
    for name, ours in evaluate(model).items():
        client_checks.assert_close(name, ours, theirs[name], 1e-4)
    client_checks.assert_on_kernels(model)


def test_models_that_sevennet_builds():
    """Where its own accelerators come in: before layers are made and weights are read."""
    stock = load_checkpoint("7net-0").build_model()
    sevennet_command.enable()
    try:
        sevennet_command.enable()  # once is enough
        fast = load_checkpoint("7net-0").build_model()
    finally:
        sevennet_command.disable()
    assert list(fast.state_dict()) == list(stock.state_dict())
    whole = client_checks.accelerate_all(stock)
    assert [type(part).__mro__[1] for part in fast.modules() if is_accelerated(part)] == [
        type(part).__mro__[1] for part in whole.modules() if is_accelerated(part)
    ]
    assert not any(map(is_accelerated, load_checkpoint("7net-0").build_model().modules()))
    evaluate = evaluation(STRUCTURES["batch"], torch.float32)
    client_checks.assert_same_outputs(stock, fast, evaluate, 1e-4)


def test_the_command_line(tmp_path):
    """`sevenn inference` of a trained model."""
    ase.io.write(tmp_path / "alloy.xyz", [alloy(), alloy(2)])
    forces = {}
    for package in ("sevenn.main.sevenn", "clebsch"):
        command = [sys.executable, "-W", "ignore", "-m", package, *["sevenn"] * (package == "clebsch")]
        command += ["inference", "7net-0", "alloy.xyz", "--output", package, "--device", "cpu", "-au"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count("modules accelerated") == (package == "clebsch")
        (found,) = (tmp_path / package).glob("per_atom*.csv")
        rows = list(csv.DictReader(found.open()))
        forces[package] = np.array([[float(row[f"inferred_force_{axis}"]) for axis in "xyz"] for row in rows])
    stock, fast = forces.values()
    assert stock.shape == (12, 3) and np.abs(stock).max() > 0.1
    assert np.abs(fast - stock).max() <= 1e-5 * np.abs(stock).max()
