"""check: right layers pass, planted errors are found and named, nothing of the user's changes."""

import copy
import itertools
import json

import e3nn.nn
import e3nn.o3
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clebsch
from clebsch import backend, machine, nn, o3
from clebsch.check import Check, LayerReport, Report
from clebsch.o3 import tensor_product
from clebsch.problems import Problem
from clebsch.standard_layers import standard_layers
from clebsch.survey import survey
from clebsch.testing import random_plans
from layer_samples import NET_CHANGED, WITHOUT_DEFINITION, changed_nets, names, sample

TANH, SIGMOID = torch.tanh, torch.sigmoid
UVU = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)]
ALL = [
    *(
        f"{name} {dtype}"
        for dtype in ("float32", "float64")
        for name in ("values", "gradients", "second derivatives", "same bits twice")
    ),
    "equivariance float64",
]


def product(**options):
    options = {"shared_weights": False} | options
    return o3.TensorProduct("4x0e+4x1o", "0e+1o", "4x0e+4x1e", UVU, **options)


def run(layer):
    """The checks of a layer that stands alone, by name and type."""
    (report,) = clebsch.check(layer).layers
    return {f"{check.name} {check.dtype}": check for check in report.checks}


def failed(layer):
    return [name for name, check in run(layer).items() if not check.passed]


# What is right passes


@pytest.mark.parametrize("name, layer", [pytest.param(*pair, id=pair[0]) for pair in standard_layers()])
def test_standard_layers_pass(name, layer):
    report = clebsch.check(layer)
    assert report.passed, str(report)
    (layer_report,) = report.layers
    found = [f"{check.name} {check.dtype}" for check in layer_report.checks]
    own = ["own weights float32"] if getattr(layer, "internal_weights", False) else []
    assert found == ALL[:-1] + own + ALL[-1:]


@pytest.mark.parametrize("name", sorted(names()))
def test_every_layer_is_checked_or_said_not_to_be(name):
    report = clebsch.check(sample(name))
    assert report.layers
    if name in WITHOUT_DEFINITION:
        assert not report.passed
        assert all(layer.not_checked for layer in report.layers)
    else:
        assert report.passed, str(report)


@pytest.mark.parametrize(
    "layer",
    [
        product(shared_weights=True),
        product(layout="ir_mul"),
        product(shared_weights=True, internal_weights=False),
        nn.TensorProductConv("4x0e+4x1o", "0e+1o", "4x0e+4x1e", UVU, shared_weights=True),
        nn.TensorProductConv("4x0e+4x1o", "0e+1o", "4x0e+4x1e", UVU, layout="ir_mul"),
        o3.TensorProduct("0x0e", "0e", "0x0e", [(0, 0, 0, "uvu", True)]),
        o3.TensorProduct("2x0e", "0e", "2x0e+3x1o", []),
        o3.FullTensorProduct("2x0o+3x1e+2x2o", "1x1o+2x1e"),
        o3.Linear("8x0e+4x1o+3x0e", "5x0e+6x1o", biases=True, f_in=2, f_out=3),
        o3.Linear("8x0e+4x1o+3x0e", "5x0e+6x1o+2x2e", biases=True, shared_weights=False),
        o3.Linear("2x0e", "", biases=True),
        o3.Linear("", "2x0e", biases=True),
        o3.SphericalHarmonics("1e", True),
        o3.SphericalHarmonics([0], False),
        o3.SphericalHarmonics([], False),
        nn.Gate("3x0o+2x0e", [TANH, None], "2x0e+3x0o", [SIGMOID, TANH], "1x1o+2x2e+2x0e"),
        nn.Gate("3x0o", [TANH], "", [], ""),
        nn.Gate("", [], "2x0e", [SIGMOID], "2x1o"),
        nn.FullyConnectedNet([3]),
        nn.FullyConnectedNet([3, 4], TANH, variance_in=2, variance_out=3, out_act=True),
        nn.Activation("", []),
    ],
    ids=repr,
)
def test_ugly_arguments_pass(layer):
    report = clebsch.check(layer)
    assert report.passed, str(report)


@given(plan=random_plans(max_terms=2000), shared=st.booleans(), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_any_product_passes(plan, shared, seed):
    instructions = [
        (path.i_in1, path.i_in2, path.i_out, path.mode, path.has_weight, path.coefficient, shape)
        for path, shape in zip(plan.paths, plan.path_shapes, strict=True)
    ]
    irreps = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
    layer = o3.TensorProduct(*irreps, instructions, shared_weights=shared, layout=plan.layout)
    report = clebsch.check(layer, rows=3, seed=seed)
    assert report.passed, str(report)


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_rows(rows):
    (report,) = clebsch.check(product(), rows=rows).layers
    assert report.passed
    assert report.shapes == {"x": (rows, 16), "y": (rows, 4), "weight": (rows, 8)}


def test_the_seed_decides_the_numbers():
    layer = product()
    assert str(clebsch.check(layer, seed=3)) == str(clebsch.check(layer, seed=3))
    assert str(clebsch.check(layer, seed=3)) != str(clebsch.check(layer, seed=4))


def test_a_layer_in_float64_is_checked_in_both():
    found = run(product(shared_weights=True).double())
    assert "values float32" in found and "own weights float64" in found
    assert all(check.passed for check in found.values())


# What is wrong is found


@pytest.fixture
def planted(monkeypatch):
    """Puts an operator in the place of the one that products call; it is given the right one and operands."""

    def plant(wrong):
        right = tensor_product.multiply_rows
        monkeypatch.setattr(tensor_product, "multiply_rows", lambda *given: wrong(right, *given))

    return plant


def test_a_wrong_value(planted):
    planted(lambda right, *given: right(*given) + 1e-4)
    assert failed(product()) == ["values float32", "values float64", "equivariance float64"]


def test_a_value_that_only_float64_sees(planted):
    planted(lambda right, *given: right(*given) + 1e-11)
    assert failed(product()) == ["values float64", "equivariance float64"]


def test_a_wrong_number_among_many(planted):
    def wrong(right, x, y, weight, sizes):
        out = right(x, y, weight, sizes)
        return out + 1e-3 * torch.nn.functional.one_hot(torch.tensor(5), out.shape[-1])

    planted(wrong)
    check = run(product())["values float64"]
    assert not check.passed
    assert check.error == pytest.approx(1e-3) and check.tolerance < 1e-12


class WrongDerivatives(torch.autograd.Function):
    """x, but its gradient, or the gradient of that, is too large."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.order = order
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return (1.001 * grad if ctx.order == 1 else WrongDerivatives.apply(grad, ctx.order - 1)), None


def test_a_wrong_gradient(planted):
    planted(lambda right, x, y, *rest: right(x, WrongDerivatives.apply(y, 1), *rest))
    found = [name for name in failed(product()) if "second" not in name]
    assert found == ["gradients float32", "gradients float64"]
    assert run(product())["gradients float64"].detail == "y"


def test_a_wrong_second_derivative(planted):
    planted(lambda right, x, *rest: right(WrongDerivatives.apply(x, 2), *rest))
    assert failed(product()) == ["second derivatives float32", "second derivatives float64"]


def test_what_rotations_change(planted, monkeypatch):
    """A product and a reference that agree on something that is not equivariant."""
    unequal = torch.linspace(1, 2, 16, dtype=torch.float64)
    planted(lambda right, *given: right(*given) * unequal.to(given[0].dtype))
    found = failed(product())
    assert "equivariance float64" in found
    planted(lambda right, *given: right(*given))
    right = clebsch.problems.products._Product.output

    def output(self, operands):
        expected = right(self, operands)
        return expected._replace(value=expected.value * unequal.numpy())

    monkeypatch.setattr(clebsch.problems.products._Product, "output", output)
    found = failed(product())
    assert "values float64" not in found and "equivariance float64" in found


def test_other_bits_on_the_second_run(planted):
    count = itertools.count()
    planted(lambda right, *given: right(*given) * (1 + next(count) * torch.finfo(given[0].dtype).eps))
    assert failed(product()) == ["same bits twice float32", "same bits twice float64"]


def test_not_a_number(planted):
    planted(lambda right, *given: right(*given).index_fill(0, torch.tensor([2]), float("nan")))
    assert "values float32" in failed(product())


def test_another_shape_or_type(planted):
    planted(lambda right, *given: right(*given).double())
    check = run(product())["values float32"]
    assert (check.passed, check.detail) == (False, "(19, 16) in float32 expected, got (19, 16) in float64")
    assert str(check) == (
        "FAIL  values               float32  (19, 16) in float32 expected, got (19, 16) in float64"
    )


def test_a_layer_that_raises(planted):
    def wrong(right, *given):
        raise RuntimeError("out of\n luck")

    planted(wrong)
    assert [(name, check.detail) for name, check in run(product()).items() if not check.passed] == [
        ("values float32", "RuntimeError: out of luck"),
        ("values float64", "RuntimeError: out of luck"),
        ("equivariance float64", "RuntimeError: out of luck"),
    ]


def test_own_weights_that_are_not_used(monkeypatch):
    right = o3.TensorProduct._get_weight

    def wrong(self, weight, x=None):
        return right(self, self.weight * 1.01 if weight is None else weight, x)

    monkeypatch.setattr(o3.TensorProduct, "_get_weight", wrong)
    assert failed(product(shared_weights=True)) == ["own weights float32"]


def test_own_weights_that_are_not_finite():
    layer = product(shared_weights=True)
    with torch.no_grad():
        layer.weight[3] = float("inf")
    assert failed(layer) == ["own weights float32"]
    assert run(layer)["own weights float32"].detail == "the layer holds weights that are not finite"


def test_a_wrong_convolution(monkeypatch):
    from clebsch.nn import convolution

    right = convolution.convolve
    monkeypatch.setattr(convolution, "convolve", lambda x, *rest: right(x.flip(0), *rest))
    layer = nn.TensorProductConv("4x0e+4x1o", "0e+1o", "4x0e+4x1e", UVU)
    assert "values float64" in failed(layer)


@pytest.mark.parametrize(
    "layer, owner, attribute",
    [
        (o3.Linear("4x0e+2x1o", "3x0e+2x1o", biases=True), o3.Linear, "forward"),
        (o3.SphericalHarmonics([0, 1, 2], True), o3.SphericalHarmonics, "forward"),
        (nn.Activation("4x0e", [TANH]), nn.Activation, "forward"),
        (nn.Gate("2x0e", [TANH], "2x0e", [SIGMOID], "2x1o"), nn.Gate, "forward"),
        (nn.FullyConnectedNet([2, 3], TANH), nn.FullyConnectedNet, "forward"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_every_kind_of_layer(layer, owner, attribute, monkeypatch):
    right = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, lambda *given: right(*given) * 1.001)
    found = failed(layer)
    assert {"values float32", "values float64", "gradients float64"} <= set(found)


# e3nn's layers


def e3nn_layers():
    return [
        e3nn.o3.FullyConnectedTensorProduct("6x0e+4x1o", "2x0e+3x1o", "5x0e+3x1o+2x2e"),
        e3nn.o3.TensorProduct("4x2e", "1x2e+1x3e", "4x3e", [(0, 0, 0, "uvu", True), (0, 1, 0, "uvu", False)]),
        e3nn.o3.FullTensorProduct("2x0e+3x1o", "2x1o"),
        e3nn.o3.ElementwiseTensorProduct("2x0e+3x1o", "2x1o+3x0e"),
        e3nn.o3.TensorSquare("3x0e+2x1o"),
        e3nn.o3.Linear("8x0e+4x1o+3x0e", "5x0e+6x1o", biases=True),
        e3nn.o3.Linear("8x0e+4x1o", "5x0e+6x1o", f_in=2, f_out=3),
        e3nn.o3.Linear("8x0e+4x1o+3x0e", "5x0e+6x1o", path_normalization="path", shared_weights=False),
        e3nn.o3.SphericalHarmonics([0, 1, 2, 3], True, "component"),
        e3nn.o3.Norm("3x0e+2x1o"),
        e3nn.nn.Gate("2x0e", [TANH], "2x0e", [SIGMOID], "2x1o"),
        e3nn.nn.Activation("2x0e+3x0o", [SIGMOID, TANH]),
        e3nn.nn.FullyConnectedNet([3, 4, 5], TANH, variance_out=2),
        e3nn.nn.BatchNorm("3x0e+2x1o+2x0o"),
        e3nn.nn.BatchNorm("3x0e+2x1o+2x0e", normalization="norm").eval(),
        e3nn.nn.BatchNorm("3x0e+2x1o", instance=True, reduce="max", affine=False),
        e3nn.nn.BatchNorm("3x0e+2x1o", reduce="max", include_bias=False),
        e3nn.nn.Dropout("3x0e+2x1o", 0.5).eval(),
        e3nn.nn.Extract("3x0e+2x1o+1x0o", ["2x1o", "1x0o+3x0e"], [(1,), (2, 0)]),
        e3nn.nn.NormActivation(e3nn.o3.Irreps("3x0e+2x1o"), SIGMOID, bias=True),
        e3nn.o3.ReducedTensorProducts("ij=-ji", i="1x0e+1x1o"),
        e3nn.o3.ReducedTensorProducts("ijk=jik", i="1o", k="1o"),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_of_e3nn_give_our_numbers(dtype):
    torch.set_default_dtype(dtype)
    for layer in e3nn_layers():
        report = clebsch.check(layer)
        assert report.passed, str(report)
        checks = {check.name for check in report.layers[0].checks}
        assert ("equivariance" in checks) == (dtype == torch.float64)
        compared = hasattr(layer, "weight_numel") or isinstance(layer, e3nn.o3.SphericalHarmonics)
        assert ("same as clebsch" in checks) == compared
        assert report.layers[0].description.startswith("e3nn ")


def test_a_layer_of_e3nn_made_in_float32():
    layer = e3nn.o3.TensorProduct("4x2e", "1x3e", "4x3e", [(0, 0, 0, "uvu", True)]).double()
    found = run(layer)
    assert all(check.passed for check in found.values())
    assert found["values float64"].error > 1e-12  # its constants are float32's


def test_the_signs_of_e3nn_04():
    torch.set_default_dtype(torch.float64)
    layer = e3nn.o3.TensorProduct("4x1o", "1x2e", "4x2o", [(0, 0, 0, "uvu", True)])
    (name,) = (name for name, _ in layer.named_buffers() if name.endswith("_w3j_1_2_2"))
    assert clebsch.check(layer).passed
    layer.get_buffer(name).neg_()
    assert clebsch.check(layer).passed
    layer.get_buffer(name)[0] *= 1.1
    assert "same as clebsch float64" in failed(layer)


def test_errors_of_e3nn_are_theirs():
    layer = e3nn.o3.Linear("8x0e", "5x0e")
    right = layer.forward
    layer.forward = lambda *given: right(*given) * 1.001
    assert failed(layer) == [
        "values float32",
        "gradients float32",
        "second derivatives float32",
        "same as clebsch float32",
        "own weights float32",
    ]


# What is not checked


def not_checked(layer, **options):
    report = clebsch.check(layer, **options)
    assert not report.passed
    (found,) = report.layers
    assert not found.passed
    return found.not_checked


def test_reasons_for_not_checking():
    class Other(o3.Linear):
        def forward(self, x):
            return x

    assert not_checked(Other("0e", "0e")) == "Other overrides the forward of Linear"
    assert (
        not_checked(o3.Linear("0e", "0e").to("meta"))
        == "it is on meta; layers are run and compared on the CPU"
    )
    assert not_checked(e3nn.nn.Identity("2x0e", "2x0e")) == (
        "e3nn's Identity has no definition here to compare with"
    )
    big = o3.FullyConnectedTensorProduct("200x0e", "200x0e", "200x0e", internal_weights=False)
    assert not_checked(big) == (
        "the reference would sum 8,000,000 terms a row, more than 2,000,000; see rows"
    )
    assert not_checked(nn.FullyConnectedNet([])) == "it has no layers"
    for net in changed_nets():
        assert not_checked(net) == NET_CHANGED


@pytest.mark.parametrize("shared", [True, False])
def test_linear_layers_of_e3nn_whose_axes_do_not_show(shared, capfd):
    layer = e3nn.o3.Linear("2x0e", "2x0e", f_in=3, f_out=4, internal_weights=False, shared_weights=shared)
    assert not_checked(layer) == "whether it has f_in and f_out does not show"
    assert capfd.readouterr() == ("", "")
    layer = e3nn.o3.Linear("2x0e", "2x0e", internal_weights=False, shared_weights=shared)
    assert all(check.passed for check in run(layer).values())


def test_layers_of_e3nn_that_are_not_as_expected():
    layer = e3nn.o3.FullyConnectedTensorProduct("16x0e", "2x0e", "10x0e")
    layer.instructions = [ins._replace(i_out=7) for ins in layer.instructions]
    assert not_checked(layer) == (
        "IndexError: paths[0] = (0, 0, 7, 'uvw', True): i_out must be >= 0 and < 1, the blocks of "
        "irreps_out = '10x0e'"
    )


def test_a_layer_that_cannot_be_shown():
    """e3nn's SO3Grid prints attributes that it does not have."""
    with pytest.raises(AttributeError):
        repr(e3nn.o3.SO3Grid(2, 4))
    reports = clebsch.check(e3nn.nn.SO3Activation(2, 2, torch.tanh, 4)).layers
    assert [report.description for report in reports[:2]] == ["e3nn SO3Grid(...)"] * 2
    assert not_checked(e3nn.o3.SO3Grid(2, 4)) == "e3nn's SO3Grid has no definition here to compare with"


def test_rows_are_fewer_where_terms_are_many():
    layer = o3.FullyConnectedTensorProduct("100x0e", "50x0e", "100x0e")
    (report,) = clebsch.check(layer).layers
    assert report.passed and report.shapes["x"] == (12, 100)


def test_a_layer_that_cannot_be_copied():
    layer = nn.Activation("2x0e", [TANH])
    layer.stuck = (i for i in range(3))
    assert not_checked(layer).startswith("it cannot be copied: ")


def test_reports_pass_only_if_something_was_checked():
    facts = {"clebsch": "0"}
    right, wrong = (Check("values", "float32", 1.0, 2.0, passed) for passed in (True, False))
    good, bad = LayerReport("a", "A()", checks=(right,)), LayerReport("b", "B()", checks=(right, wrong))
    left = LayerReport("c", "C()", not_checked="why")
    for layers, passed, summary in (
        ((), False, "NOT PASSED: nothing was checked: no layer of clebsch or e3nn in Model"),
        ((left,), False, "NOT PASSED: nothing was checked; 1 of 1 layers not checked"),
        ((good,), True, "passed: 1 checks"),
        ((good, left), True, "passed: 1 checks; 1 of 2 layers not checked"),
        ((good, bad), False, "NOT PASSED: 1 of 3 checks failed"),
        ((good, LayerReport("d", "D()")), False, "passed: 1 checks"),
    ):
        report = Report("Model", facts, layers)
        assert report.passed is passed
        if layers[1:] != (LayerReport("d", "D()"),):
            assert report.summary() == summary


def test_models():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Linear(2, 4)
            self.mix = o3.Linear("4x0e", "4x0e")
            self.same = self.mix
            self.blocks = torch.nn.ModuleList([product(), e3nn.nn.Identity("2x0e", "2x0e")])

    report = clebsch.check(Model())
    assert [layer.name for layer in report.layers] == ["mix", "blocks.0", "blocks.1"]
    assert [layer.not_checked is None for layer in report.layers] == [True, True, False]
    assert report.passed
    assert report.summary() == "passed: 19 checks; 1 of 3 layers not checked"
    assert not clebsch.check(torch.nn.Sequential(torch.nn.ReLU())).passed


# The report


def test_the_text():
    layer = o3.Linear("4x0e", "3x0e")
    report = clebsch.check(torch.nn.ModuleDict({"mix": layer}), seed=5)
    text = str(report)
    assert repr(report) == text
    lines = text.splitlines()
    facts = machine.describe()
    assert lines[: len(facts)] == [f"{name:<17} {value}" for name, value in facts.items()]
    assert f"instruction set   {backend.instruction_set()}" in lines
    assert f"threads           {torch.get_num_threads()}" in lines
    assert f"clebsch           {clebsch.__version__}" in lines
    rest = lines[len(facts) + 1 :]
    assert rest[:3] == [
        "mix: Linear(4x0e -> 3x0e | 12 weights)",
        "  plan 4x0e*1x0e->3x0e;mul_ir;0 0 0 uvw w 0.5",
        "  features (19, 4), weight (12,), bias (0,), seed 5",
    ]
    check = report.layers[0].checks[0]
    assert rest[3] == (
        f"  ok    values               float32  error {check.error:.2g}, allowed {check.tolerance:.2g}"
    )
    assert rest[6] == "  ok    same bits twice      float32"
    assert rest[-2:] == ["", "passed: 10 checks"]


def test_as_json():
    content = clebsch.check(product()).as_json()
    assert content["passed"] is True and content["subject"] == "TensorProduct"
    assert content["layers"][0]["checks"][0]["name"] == "values"
    assert json.loads(json.dumps(content))["layers"][0]["shapes"]["x"] == [19, 16]


# Nothing of the user's changes


def test_the_layer_and_the_state_of_torch_stay():
    model = torch.nn.ModuleDict(
        {
            "product": product(shared_weights=True),
            "net": nn.FullyConnectedNet([2, 3], TANH),
            "gate": nn.Gate("2x0e", [TANH], "2x0e", [SIGMOID], "2x1o"),
            "linear": o3.Linear("4x0e", "3x0e", biases=True),
            "theirs": e3nn.o3.FullyConnectedTensorProduct("6x0e", "2x0e", "5x0e"),
        }
    )
    model.eval()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    model["linear"].weight.requires_grad_(False)
    for part in model.modules():
        part.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
        part.register_forward_pre_hook(lambda *_: pytest.fail("a hook ran"))
    before = copy.deepcopy({name: value for name, value in model.state_dict().items()})
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert clebsch.check(model["product"]).passed
    for name in ("net", "gate", "linear"):
        assert clebsch.check(model[name]).passed
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == numpy_random).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all((parameter.grad == 7).all() for parameter in model.parameters())
    assert attributes == {name: set(vars(part)) for name, part in model.named_modules()}
    assert not model.training and not model["linear"].weight.requires_grad


@pytest.mark.parametrize(
    "surroundings",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_whatever_surrounds_the_call(surroundings):
    with surroundings():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        report = clebsch.check(torch.nn.ModuleList([product(shared_weights=True), o3.Linear("2x0e", "2x0e")]))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, inference)
    assert report.passed, str(report)


def test_every_problem_documents_its_operands():
    for _, layer in standard_layers():
        (found,) = survey(layer)
        problem: Problem = clebsch.problems.problem(found, 3)
        assert len(problem.names) == len(problem.operands) == len(problem.spaces)
        assert all((operand == operand.astype(np.float32)).all() for operand in problem.operands)


# Bad arguments


@pytest.mark.parametrize(
    "module, options, kind, message",
    [
        (42, {}, TypeError, "check: module must be a torch.nn.Module, got int"),
        (o3.Linear, {}, TypeError, "check: module must be a torch.nn.Module, got type"),
        (o3.Linear("0e", "0e"), {"rows": 0}, ValueError, "check: rows must be an integer >= 1, got 0"),
        (o3.Linear("0e", "0e"), {"rows": 1.0}, ValueError, "check: rows must be an integer >= 1, got 1.0"),
        (o3.Linear("0e", "0e"), {"seed": -1}, ValueError, "check: seed must be an integer >= 0, got -1"),
        (o3.Linear("0e", "0e"), {"seed": None}, ValueError, "check: seed must be an integer >= 0, got None"),
    ],
)
def test_bad_arguments(module, options, kind, message):
    with pytest.raises(kind) as error:
        clebsch.check(module, **options)
    assert str(error.value) == message
