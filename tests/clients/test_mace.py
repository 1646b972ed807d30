"""MACE, unmodified and accelerated.

Run in an environment that holds mace-torch, with clebsch on PYTHONPATH: tests/clients/run.py.
"""

import os
import warnings

import numpy as np
import pytest
import torch

import clebsch

# The e3nn 0.4 that MACE asks for loads its constants as pickles.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
modules = pytest.importorskip("mace.modules", reason="needs mace-torch")

import ase  # noqa: E402
import client_checks as checks  # noqa: E402
from ase.build import bulk, molecule  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import data, tools  # noqa: E402
from mace.tools import torch_geometric  # noqa: E402

NUMBERS = [1, 6, 8, 29]
CUTOFF = 4.0

CONFIGURATIONS = {
    "molecule": lambda: [molecule("CH3CH2OH")],
    "crystal": lambda: [_rattled(bulk("Cu", "fcc", a=3.6, cubic=True))],
    "self images": lambda: [bulk("Cu", "fcc", a=3.0)],
    "isolated": lambda: [ase.Atoms("COH", [[0, 0, 0], [0, 0, 1.2], [50, 0, 0]])],
    "one atom": lambda: [ase.Atoms("O")],
    "batch": lambda: [molecule("H2O"), ase.Atoms("C"), bulk("Cu", "fcc", a=3.0), molecule("CH4")],
}


@pytest.fixture(autouse=True)
def quiet_default_dtype():
    before = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(before)


def _rattled(atoms):
    atoms.rattle(0.05, seed=3)
    return atoms


def build(dtype=torch.float64, hidden="8x0e+8x1o", block="RealAgnosticResidualInteractionBlock", **changes):
    torch.set_default_dtype(dtype)
    torch.manual_seed(5)
    arguments = dict(
        r_max=CUTOFF,
        num_bessel=6,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=modules.interaction_classes[block],
        interaction_cls_first=modules.interaction_classes[block],
        num_interactions=2,
        num_elements=len(NUMBERS),
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("4x0e"),
        atomic_energies=np.linspace(-1, 1, len(NUMBERS)),
        avg_num_neighbors=8.0,
        atomic_numbers=NUMBERS,
        correlation=2,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.3,
        atomic_inter_shift=0.1,
    )
    return modules.ScaleShiftMACE(**{**arguments, **changes})


def batch(name, dtype=torch.float64):
    torch.set_default_dtype(dtype)
    table = tools.AtomicNumberTable(NUMBERS)
    graphs = []
    for atoms in CONFIGURATIONS[name]():
        configuration = data.config_from_atoms(atoms, key_specification=data.KeySpecification())
        graphs.append(data.AtomicData.from_config(configuration, z_table=table, cutoff=CUTOFF))
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs), shuffle=False)
    return next(iter(loader)).to_dict()


def evaluation(given, stress=True):
    def evaluate(model):
        out = model(dict(given), compute_stress=stress)
        return {
            name: out[name] for name in ("energy", "forces", "stress", "node_feats") if out[name] is not None
        }

    return evaluate


def loss_of(given):
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(given["positions"].shape, generator=generator).to(given["positions"])

    def loss(model):
        out = model(dict(given), training=True)
        return (out["energy"] - 1).square().sum() + (out["forces"] - target).square().sum()

    return loss


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs(name, dtype):
    stock = build(dtype)
    # Stresses of cells that are none are no numbers in MACE.
    given = batch(name, dtype)
    evaluate = evaluation(given, stress=name in ("crystal", "self images"))
    checks.assert_same_outputs(stock, checks.accelerate_all(stock), evaluate, TOLERANCE[dtype])


BLOCKS = [
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticAttResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks(block):
    stock = build(block=block)
    fast = checks.accelerate_all(stock)
    given = batch("crystal")
    checks.assert_same_outputs(stock, fast, evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, loss_of(given), 1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_ell": 3, "correlation": 3},
        {"hidden": "7x0e+7x1o+7x2e", "max_ell": 4},
        {"hidden": "5x0e", "max_ell": 1, "correlation": 4},
        {"hidden": "6x0e+6x0o+6x1e+6x1o"},
        {"correlation": [1, 3], "num_interactions": 2},
        {"num_interactions": 1},
        {"num_interactions": 3},
        {"edge_irreps": o3.Irreps("4x0e+3x1o")},
        {"apply_cutoff": False},
        {"pair_repulsion": True},
        {"use_so3": True, "hidden": "4x0e+4x1e"},
        {"use_agnostic_product": True},
        {"distance_transform": "Agnesi", "radial_MLP": [16]},
        {"radial_MLP": []},
        {"heads": ["a", "b"], "atomic_energies": np.zeros((2, 4)), "atomic_inter_scale": [1.0, 1.0],
         "atomic_inter_shift": [0.0, 0.0]},
    ],
    ids=str,
)  # fmt: skip
def test_architectures(changes):
    stock = build(**changes)
    fast = checks.accelerate_all(stock)
    given = batch("crystal")
    checks.assert_same_outputs(stock, fast, evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, loss_of(given), 1e-9)


def test_as_on_a_gpu(monkeypatch):
    stock, given = build(), batch("batch")
    evaluate = evaluation(given, stress=False)
    checks.assert_same_on_gpu(stock, evaluate, loss_of(given), monkeypatch, 1e-9, left=["skip_tp"])


@pytest.mark.parametrize("name", ["batch", "one atom"])
def test_gradients_of_parameters(name):
    stock = build()
    checks.assert_same_gradients(stock, checks.accelerate_all(stock), loss_of(batch(name)), 1e-9)


def test_attributes_that_are_not_one_hot():
    stock = build()
    given = batch("molecule")
    given["node_attrs"] = given["node_attrs"] * 0.9 + 0.02
    checks.assert_same_outputs(stock, checks.accelerate_all(stock), evaluation(given, stress=False), 1e-10)


def test_forces_are_gradients():
    fast = checks.accelerate_all(build())
    given = batch("crystal")

    def energy(positions):
        return fast({**given, "positions": positions}, compute_force=False)["energy"].sum()

    forces = evaluation(given)(fast)["forces"]
    checks.assert_forces_are_gradients(energy, forces, given["positions"])


def test_training_follows():
    stock = build()
    checks.assert_trains_alike(stock, checks.accelerate_all(stock), loss_of(batch("batch")))


def test_round_trip():
    given = batch("crystal")
    checks.assert_round_trip(build(), loss_of(given), evaluation(given), 1e-10)


def test_copies_and_explanation():
    fast = checks.accelerate_all(build())
    checks.assert_copies(fast, evaluation(batch("crystal")), 1e-14)
    checks.assert_explained(fast)


def test_converted_to_another_type():
    stock, given = build(torch.float32), batch("crystal")
    fast = checks.accelerate_all(stock)
    evaluation(batch("crystal", torch.float32))(fast)
    torch.set_default_dtype(torch.float64)
    checks.assert_same_outputs(stock.double(), fast.double(), evaluation(given), 1e-10)


def test_other_types_take_its_own_code():
    stock = build(torch.float32)
    fast = checks.accelerate_all(stock)
    given = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in batch("molecule", torch.float32).items()
    }
    theirs, ours = (model.bfloat16()(dict(given))["energy"] for model in (stock, fast))
    assert ours.dtype == torch.bfloat16
    assert abs(float(ours - theirs)) <= 0.02 * abs(float(theirs))
    reasons = {vars(part).get("_clebsch_reason") for part in fast.modules()} - {None}
    assert reasons and all("kernels take float32 or float64" in reason for reason in reasons)


def test_half_known_blocks_are_left():
    stock = build()
    stock.interactions[0].conv_fusion = True
    with pytest.raises(ValueError, match=r"interactions\.0 .*: its convolution is fused by somebody else"):
        clebsch.accelerate(stock, strict=True)
    fast = clebsch.accelerate(stock)
    assert "left to mace: its convolution is fused by somebody else" in str(
        clebsch.explain(fast, measure=False)
    )


def replace_product(block):
    block.conv_tp = checks.OwnProduct(block.conv_tp)


@pytest.mark.parametrize(
    "name, harm, reason",
    [
        ("interactions.1", checks.own_forward, "client_checks.own_forward.<locals>.Own has a forward of its"),
        ("interactions.1", replace_product, "its product is a OwnProduct, not one of e3nn's"),
        ("interactions.1.conv_tp", checks.no_coupling, "_compiled_main_left_right._w3j_1_1_"),
        ("products.0.symmetric_contractions", checks.own_forward, "client_checks.own_forward.<locals>.Own"),
        ("interactions.0.linear", checks.own_forward, "client_checks.own_forward.<locals>.Own has a forward"),
    ],
)
def test_what_is_unlike_the_expected_is_left(name, harm, reason):
    stock = build()
    harm(stock.get_submodule(name))
    checks.assert_left(stock, name, reason, evaluation(batch("molecule"), stress=False))


def test_autocast_is_maces():
    stock = build(torch.float32)
    evaluate = evaluation(batch("molecule", torch.float32), stress=False)
    checks.assert_autocast_is_the_packages(stock, checks.accelerate_all(stock), evaluate)


@pytest.mark.parametrize(
    "block", ["RealAgnosticResidualInteractionBlock", "RealAgnosticResidualNonLinearInteractionBlock"]
)
def test_all_hooks_are_heard(block):
    stock = build(block=block)
    evaluate = evaluation(batch("molecule"), stress=False)
    checks.assert_hooks_are_heard(stock, checks.accelerate_all(stock), evaluate, 1e-10)


def test_parts_on_their_own():
    """A product that was accelerated before its block, or restored after it, does not break it."""
    stock, given = build(), batch("molecule")
    fast = clebsch.accelerate(stock)
    clebsch.restore(fast)
    clebsch.accelerate(fast.interactions[0].conv_tp, inplace=True)
    clebsch.accelerate(fast, inplace=True, strict=True)
    checks.assert_same_outputs(stock, fast, evaluation(given, stress=False), 1e-10)
    clebsch.restore(fast.interactions[1].conv_tp)
    checks.assert_same_outputs(stock, fast, evaluation(given, stress=False), 1e-10)
    clebsch.restore(fast)
    checks.assert_same_outputs(stock, fast, evaluation(given, stress=False), 1e-12)


def test_classes_make_modules_of_the_package():
    fast = clebsch.accelerate(build())
    made = type(fast.interactions[0].linear_up)("2x0e", "3x0e")
    assert type(made) is o3.Linear and made(torch.ones(1, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    "part",
    [
        "interactions.1.conv_tp",
        "interactions.1.conv_tp_weights",
        "interactions.1.conv_tp_weights.layer3",
        "products.0.symmetric_contractions.contractions.0",
    ],
)
def test_hooks_are_heard(part):
    """Where somebody listens to a part that our kernels would not call, the package's own code runs."""
    stock, given = build(), batch("molecule")
    fast = checks.accelerate_all(stock)
    for model in (stock, fast):
        model.get_submodule(part).register_forward_hook(lambda module, inputs, out: out * 1.5)
    evaluate = evaluation(given, stress=False)
    theirs, ours = evaluate(stock), evaluate(fast)
    for name in theirs:
        checks.assert_close(name, ours[name], theirs[name], 1e-10)


def test_adapters_of_mace():
    lora = pytest.importorskip("mace.modules.lora", reason="needs adapters of mace-torch")
    stock, given = build(), batch("molecule")
    lora.inject_lora(stock, rank=2, alpha=1.0)
    fast = clebsch.accelerate(stock)
    evaluate = evaluation(given, stress=False)
    theirs, ours = evaluate(stock), evaluate(fast)
    for name in theirs:
        checks.assert_close(name, ours[name], theirs[name], 1e-10)


def test_restore_refuses_classes_on_top():
    fast = clebsch.accelerate(build())
    linear = fast.interactions[0].linear_up
    torch.nn.utils.parametrize.register_parametrization(linear, "weight", torch.nn.Identity())
    with pytest.raises(
        ValueError, match=r"restore: model\.interactions\.0\.linear_up has a class on top of ours"
    ):
        clebsch.restore(fast)
    torch.nn.utils.parametrize.remove_parametrizations(linear, "weight")
    clebsch.restore(fast)


def test_dynamics_conserve_energy():
    from ase.units import fs
    from mace.calculators import MACECalculator

    stock = build()
    calculators = [
        MACECalculator(models=[model], device="cpu", default_dtype="float64")
        for model in (stock, checks.accelerate_all(stock))
    ]
    atoms = _rattled(bulk("Cu", "fcc", a=3.6, cubic=True))
    checks.assert_conserves_energy(*calculators, atoms, 2 * fs)
    checks.assert_on_kernels(calculators[1].models[0])
