"""Products with one-hot rows of scalars, seen when called: o3.FullyConnectedTensorProduct and e3nn's own.

The linear layer with an index that they run on: test_linear.py.
"""

import math

import e3nn.o3
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clebsch.e3nn
from clebsch import explain, o3
from clebsch.algebra.plan import ProductPlan
from clebsch.ops import one_hot
from clebsch.ops.tensor_product import plan_sizes
from clebsch.testing import assert_close_to_reference, random_irreps
from layer_comparison import assert_same_function
from product_calls import instruction_sets

IRREPS = "5x0e+4x1o+3x2e", "7x0e+2x1o+3x1o+2x2e"


pytestmark = pytest.mark.usefixtures("float64_by_default")


@pytest.fixture(autouse=True)
def disabled_afterwards():
    yield
    clebsch.e3nn.disable()


@pytest.fixture
def chosen(monkeypatch):
    """The number of rows of every call that went to the linear layer with an index."""
    calls, own = [], one_hot.mix_rows

    def counted(x, *arguments):
        calls.append(len(x))
        return own(x, *arguments)

    monkeypatch.setattr(one_hot, "mix_rows", counted)
    return calls


def rows_of(elements, rows=7, present=None):
    """One-hot rows that name `present` of the elements."""
    named = torch.randperm(elements)[: present or elements]
    return torch.eye(elements)[named[torch.randint(0, len(named), (rows,))]]


def both(irreps_in=IRREPS[0], irreps_out=IRREPS[1], elements=4):
    """Ours and e3nn's, with the same weights."""
    theirs = e3nn.o3.FullyConnectedTensorProduct(irreps_in, f"{elements}x0e", irreps_out)
    ours = o3.FullyConnectedTensorProduct(irreps_in, f"{elements}x0e", irreps_out)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def compare(ours, theirs, x, y):
    """Values, first and second derivatives by x and the weights."""
    held = ([ours.weight], [theirs.weight]) if ours.weight_numel else ((), ())
    assert_same_function(lambda a: ours(a, y), lambda a: theirs(a, y), [x], held)


# The numbers


@pytest.mark.parametrize("elements, present", [(1, 1), (2, 1), (4, 4), (89, 3)])
def test_equals_e3nn(elements, present, chosen):
    ours, theirs = both(elements=elements)
    compare(ours, theirs, torch.randn(9, 32), rows_of(elements, 9, present))
    assert chosen == [9, 9]


@pytest.mark.parametrize("elements, present", [(1, 1), (4, 2), (89, 3)])
def test_e3nns_own_layer(elements, present, chosen):
    _, theirs = both(elements=elements)
    x, y = torch.randn(9, 32), rows_of(elements, 9, present)

    def live(a):
        with clebsch.e3nn.enable():
            return theirs(a, y)

    weights = [theirs.weight], [theirs.weight]
    assert_same_function(live, lambda a: theirs(a, y), [x], weights)
    assert chosen == [9, 9]


few = random_irreps(0, 4, 4, (0, 1, 2, 3, 5, 7, 13))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(few, few, st.sampled_from((1, 2, 3, 89)), st.integers(0, 9), st.integers(0, 2**20))
@example(o3.Irreps("3x0e"), o3.Irreps("0x0e"), 2, 3, 0)
@example(o3.Irreps(""), o3.Irreps("2x0e"), 2, 3, 0)
def test_random_irreps(irreps_in, irreps_out, elements, rows, seed):
    torch.manual_seed(seed)
    ours, theirs = both(str(irreps_in), str(irreps_out), elements)
    compare(ours, theirs, torch.randn(rows, irreps_in.dim), rows_of(elements, rows, min(elements, 3)))


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_derived_tolerance(dtype, layout, chosen):
    from clebsch import reference

    layer = o3.FullyConnectedTensorProduct(IRREPS[0], "4x0o", "3x0o+5x1e+2x2o", layout=layout).to(dtype)
    x, y = torch.randn(60, 32, dtype=dtype), rows_of(4, 60).to(dtype)
    for _ in instruction_sets():
        out = layer(x, y)
        assert_close_to_reference(out, reference.tensor_product, layer.plan, x, y, layer.weight)
        # zeros of y count for nothing in what is allowed
        index = y.argmax(1)
        assert_close_to_reference(
            out, reference.linear, layer.plan, x, layer.weight, torch.zeros(0), (), index
        )
    assert chosen == [60] * len(list(instruction_sets()))


# Which rows are one-hot


def nearly(kind):
    """Rows that are one-hot but for the third."""
    y = rows_of(4, 6)
    y[2] = torch.tensor(
        {
            "0.999": [0.0, 0.999, 0.0, 0.0],
            "next below 1": [0.0, math.nextafter(1.0, 0.0), 0.0, 0.0],
            "next above 1": [0.0, math.nextafter(1.0, 2.0), 0.0, 0.0],
            "two ones": [1.0, 0.0, 1.0, 0.0],
            "one and a little": [1.0, 1e-300, 0.0, 0.0],
            "zero": [0.0] * 4,
            "negative": [0.0, -1.0, 0.0, 0.0],
            "one and its negative": [1.0, -1.0, 1.0, 0.0],
            "halves": [0.5, 0.5, 0.0, 0.0],
        }[kind]
    )
    return y


KINDS = (
    *("0.999", "next below 1", "next above 1", "two ones", "one and a little"),
    *("zero", "negative", "one and its negative", "halves"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_one_hot_rows_are_multiplied_with(kind, chosen):
    y, x = nearly(kind), torch.randn(6, 32)
    ours, theirs = both()
    compare(ours, theirs, x, y)
    with clebsch.e3nn.enable():
        live = theirs(x, y)
    torch.testing.assert_close(live, theirs(x, y), rtol=1e-12, atol=1e-12)
    assert chosen == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("beside_a_one", [False, True])
def test_not_finite_rows_are_multiplied_with(bad, beside_a_one, chosen):
    y, x = rows_of(4, 6), torch.randn(6, 32)
    y[2] = torch.tensor([0.0, bad, 0.0, float(beside_a_one)])
    ours, theirs = both()
    out = ours(x, y)
    torch.testing.assert_close(out, theirs(x, y), rtol=1e-12, atol=1e-12, equal_nan=True)
    assert not out[2].isfinite().any() and out[3].isfinite().all()
    assert chosen == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_index(dtype):
    find = torch.ops.clebsch.one_hot_index
    for elements, rows in ((1, 3), (4, 6), (89, 200), (4, 0)):
        y = rows_of(elements, rows).to(dtype)
        index = find(y)
        assert index.dtype == torch.int64 and torch.equal(index, y.argmax(1) if rows else index[:0])
        assert torch.equal(find(-0.0 * (1 - y) + y), index)  # -0 is 0
        assert torch.equal(find(y.T.contiguous().T), index)
        assert torch.equal(find(y.repeat_interleave(2, 1)[:, ::2]), index)
    assert torch.equal(find(torch.eye(3, dtype=dtype)[1].expand(5, 3)), torch.tensor([1] * 5))
    for y in (*map(nearly, KINDS), torch.zeros(3, 0), torch.full((3, 4), float("nan"))):
        y = y.to(dtype)
        if dtype == torch.float64 or not torch.equal(y[2:3].sum(), torch.ones((), dtype=dtype)):
            assert find(y).shape == (0,), y
    with pytest.raises(ValueError, match=r"^one_hot_index: y must have 2 dimensions, got 1$"):
        find(torch.ones(3, dtype=dtype))
    with pytest.raises(ValueError, match=r"^one_hot_index: y must be float32 or float64$"):
        find(torch.eye(3).long())


# Which calls look


def test_a_y_that_requires_gradients_is_multiplied_with(chosen):
    ours, theirs = both()
    inputs = torch.randn(6, 32), rows_of(4, 6)
    assert_same_function(ours, theirs, inputs, ([ours.weight], [theirs.weight]))
    assert chosen == []


def test_gradients_are_in_place_of_those_of_the_product(chosen):
    """A y that requires gradients gives the gradients of x and of the weights that one-hot rows give."""
    ours, _ = both()
    x, y = torch.randn(6, 32, requires_grad=True), rows_of(4, 6)
    found = torch.autograd.grad(ours(x, y).sin().sum(), (x, ours.weight))
    assert chosen == [6]
    wanted = torch.autograd.grad(ours(x, y.requires_grad_()).sin().sum(), (x, ours.weight))
    assert chosen == [6]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_records_a_call_sees_the_product(chosen):
    """Whoever repeats it with other numbers has not baked the species in."""
    from torch.fx.experimental.proxy_tensor import make_fx

    ours, _ = both()
    ours.requires_grad_(False)
    x, y, other, weight = torch.randn(6, 32), rows_of(4, 6), torch.randn(6, 4), ours.weight.detach()
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(lambda *given: ours(*given), tracing_mode=mode)(x, y, weight)
        torch.testing.assert_close(traced(x, other, weight), ours(x, other))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    compiled(x, y)
    torch.testing.assert_close(compiled(x, other), ours(x, other))
    exported = torch.export.export(ours, (x, y)).module()
    torch.testing.assert_close(exported(x, other), ours(x, other))
    torch.testing.assert_close(torch.jit.trace(ours, (x, y), check_trace=False)(x, other), ours(x, other))
    assert chosen == []
    stacked = torch.vmap(lambda a: ours(a, y))(x[None])
    assert chosen == []
    torch.testing.assert_close(stacked[0], ours(x, y))
    assert chosen == [6]


@pytest.mark.parametrize(
    "x, y, weight",
    [
        (torch.ones(6, 31), torch.eye(4)[[0] * 6], None),
        (torch.ones(6, 32), torch.eye(5)[[0] * 6], None),
        (torch.ones(5, 32), torch.eye(4)[[0] * 6], None),
        (torch.ones(6, 32).double(), torch.eye(4).float()[[0] * 6], None),
        (torch.ones(6, 32).double(), torch.eye(4).double()[[0] * 6], torch.ones(244).float()),
    ],
)
def test_operands_that_do_not_fit_are_refused_in_the_words_of_the_product(x, y, weight):
    ours, _ = both()
    assert ours.weight_numel == 244
    with pytest.raises((TypeError, ValueError), match=r"^(tensor_product|FullyConnectedTensorProduct): "):
        ours(x.to(torch.get_default_dtype()) if x.dtype == torch.float32 else x, y, weight)


def test_other_leading_dimensions_and_no_rows(chosen):
    ours, theirs = both()
    x, y = torch.randn(2, 3, 32), rows_of(4, 6).view(2, 3, 4)
    torch.testing.assert_close(ours(x, y), theirs(x, y), rtol=1e-12, atol=1e-12)
    assert chosen == []
    assert ours(x[0, :0], y[0, :0]).shape == (0, 32)


@pytest.mark.parametrize(
    "plan, elements",
    [
        ("4x0e*3x0e->4x0e;mul_ir;0 0 0 uvw w 1.0", 3),
        ("4x1e*3x0o+0x1o->4x1o;mul_ir;0 0 0 uvw w 1.0", 3),
        ("4x0e*3x0e->4x0e;mul_ir;0 0 0 uvw w 1.0,0 0 0 uvu w 1.0", 0),
        ("4x0e*1x0e+2x0e->4x0e;mul_ir;0 0 0 uvw w 1.0,0 1 0 uvw w 1.0", 0),
        ("4x1o*1x1o->1x0e;mul_ir;0 0 0 uvw w 1.0", 0),
        ("4x0e*->2x0e;mul_ir;", 0),
        ("4x0e*3x0e->2x0e;mul_ir;", 0),
    ],
)
def test_plans(plan, elements):
    assert plan_sizes(ProductPlan.parse(plan)).elements == elements


def test_weights_of_rows_and_split_scalars_are_multiplied_with(chosen):
    y = rows_of(4, 6)
    split = o3.FullyConnectedTensorProduct("3x0e", "1x0e+3x0e", "2x0e")
    assert split(torch.randn(6, 3), y).shape == (6, 2)
    own = o3.FullyConnectedTensorProduct("3x0e", "4x0e", "2x0e", shared_weights=False)
    assert own(torch.randn(6, 3), y, torch.randn(6, 24)).shape == (6, 2)
    assert chosen == []


def test_explain_says_so():
    layer, theirs = both()
    wanted = (
        "species-indexed linear when y is one-hot: the kernels and costs shown are those of any other y, "
        "through the matrices of all 4"
    )
    assert wanted in explain(layer, measure=False)[0].reasons
    assert wanted not in explain(theirs, measure=False)[0].reasons
    other = o3.FullyConnectedTensorProduct("3x0e", "1x1o", "2x1o")
    assert not [reason for reason in explain(other, measure=False)[0].reasons if "one-hot" in reason]
