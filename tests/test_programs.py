"""Programs written for e3nn run with the import changed and nothing else: the same curve of training."""

import copy

import pytest
import torch

pytest.importorskip("e3nn")
from programs import NAMES, load_program

STEPS = 40

# In float64 both packages round the same sums in another order, 1e-16 of their size each time, and training
# carries such differences on. The curves are seen to agree to 2e-15; the tolerance leaves room for other
# instruction sets, and none for a wrong number anywhere.
TOLERANCE = 1e-11
# A weight on which the loss does not depend has a gradient g of rounding errors alone, some 1e-15, and Adam
# moves it by lr g / eps = 0.02 * 1e-15 / 1e-8 = 2e-9 in each step. That is what parameters may differ by.
PARAMETER_TOLERANCE = STEPS * 2e-9


@pytest.fixture(scope="module", params=NAMES)
def runs(request):
    """For each package: the program, its model before training and after, and the losses."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    results = {}
    for package in ("e3nn", "clebsch"):
        program = load_program(request.param, package)
        torch.manual_seed(7)
        model = program.make_model()
        initial = copy.deepcopy(dict(model.named_parameters()))
        losses = program.train(model, STEPS, seed=3)
        results[package] = program, initial, model, losses
    torch.set_default_dtype(dtype)
    return results


def test_each_program_uses_its_package(runs):
    for package, (program, _, model, _) in runs.items():
        assert {program.o3.__name__, program.nn.__name__} == {f"{package}.o3", f"{package}.nn"}
        rooms = {type(module).__module__.split(".")[0] for module in model.modules()}
        assert package in rooms and not {"e3nn", "clebsch"} - {package} & rooms


def test_initial_parameters_are_the_same(runs):
    theirs, ours = (runs[package][1] for package in ("e3nn", "clebsch"))
    assert list(theirs) == list(ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_training_curves_are_the_same(runs):
    theirs, ours = (runs[package][3] for package in ("e3nn", "clebsch"))
    assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=0)
    assert theirs[-1] < 0.6 * theirs[0]  # something is learned


def test_trained_parameters_are_the_same(runs):
    theirs, ours = (dict(runs[package][2].named_parameters()) for package in ("e3nn", "clebsch"))
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name], parameter, rtol=0, atol=PARAMETER_TOLERANCE)


def test_training_goes_on_from_a_checkpoint_of_e3nn(runs):
    torch.set_default_dtype(torch.float64)
    losses = []
    checkpoint = copy.deepcopy(runs["e3nn"][2].state_dict())
    for package in ("e3nn", "clebsch"):
        program = runs[package][0]
        model = program.make_model()  # no copy of the trained one: e3nn's copies expect more keys
        model.load_state_dict(checkpoint)
        losses.append(program.train(model, 3, seed=4))
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE, abs=0)


def test_tetrominoes_are_recognised():
    torch.set_default_dtype(torch.float64)
    program = load_program("tetris", "clebsch")
    torch.manual_seed(7)
    model = program.make_model()
    program.train(model, 2 * STEPS, seed=3)
    assert program.accuracy(model) == 1.0


def test_a_program_without_the_import_is_refused(tmp_path, monkeypatch):
    import programs

    (tmp_path / "other.py").write_text("from e3nn import o3\n")
    monkeypatch.setattr(programs, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match=r"^load_program: other\.py must contain"):
        load_program("other")
