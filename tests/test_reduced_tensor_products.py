"""o3.ReducedTensorProducts: e3nn's basis row by row, the symmetry, and what its forward pass computes."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clebsch import o3
from clebsch.o3.index_symmetry import IndexSymmetry
from clebsch.testing import random_irreps
from layer_comparison import assert_compiles_whole, assert_copies_compute_the_same, assert_same_function

e3nn_o3 = pytest.importorskip("e3nn.o3")

SYMMETRIC = "ijk=jik=ikj"

# (formula, filter_ir_out, filter_ir_mid, irreps)
CASES = [
    ("i", None, None, {"i": "2x2e+1x0e+1x1o+1x0e"}),
    ("ij", None, None, {"i": "2x0e+1x1o", "j": "1x1e+1x2o"}),
    ("ij=-ji", None, None, {"i": "1o"}),
    ("ij=ji", None, None, {"i": "2x0e+1x1o+2x2e"}),
    ("ij=-ji", None, None, {"j": "2x1o+0x2e+1x1o+1x0e"}),
    ("ij=ji", ["0e", "2e"], None, {"i": "1x3o+1x1e", "j": "1x3o+1x1e"}),
    (SYMMETRIC, None, None, {"i": "1x0e+1x1o+1x2e"}),
    ("ijk=-jik=-ikj", None, None, {"k": "1x0e+2x1o"}),
    ("ijk=jki", ["0e", "1e"], None, {"i": "2x1o+1x2e"}),
    ("ijk=jik", ["0e", "1o"], None, {"i": "2e+1o", "k": "1o+1x0e"}),
    # intermediate irreps left out: not all of the symmetric space is within reach
    (SYMMETRIC, None, ["0e", "1o", "2e"], {"i": "1x0e+1x1o+1x2e"}),
    (SYMMETRIC, None, ["1o", "2e", "3o"], {"i": "2x1o"}),
    ("ijk=kji", ["1o"], ["0e", "1o"], {"i": "1x0e+1x1o", "j": "2x1o"}),
    ("ijkl=jikl=ikjl=ijlk", None, None, {"i": "1e"}),
    ("ijkl=-jikl=klij", None, None, {"i": "1o+0e"}),
]


def both(formula, filter_ir_out=None, filter_ir_mid=None, irreps=None, load=True):
    torch.set_default_dtype(torch.float64)
    ours, theirs = (
        module.ReducedTensorProducts(formula, filter_ir_out, filter_ir_mid, **irreps)
        for module in (o3, e3nn_o3)
    )
    if load:
        ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs_of(module, *batch):
    return [torch.randn(*batch, irreps.dim) for irreps in module.irreps_in]


def contraction(module, *xs):
    """What change_of_basis says."""
    out = module.change_of_basis
    for x in reversed(xs):
        out = torch.einsum("...i,i->...", out, x)
    return out


def assert_same_basis(ours, theirs):
    assert repr(ours) == repr(theirs)
    assert list(map(str, ours.irreps_in)) == list(map(str, theirs.irreps_in))
    assert str(ours.irreps_out) == str(theirs.irreps_out)
    assert ours.change_of_basis.shape == theirs.change_of_basis.shape
    assert torch.allclose(ours.change_of_basis, theirs.change_of_basis, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_e3nn(case):
    ours, theirs = both(*case, load=False)
    assert_same_basis(ours, theirs)
    assert_same_function(ours, theirs, inputs_of(ours, 2))


@settings(max_examples=15)
@given(
    st.sampled_from(["ij=ji", "ij=-ji", "ijk=jik", SYMMETRIC, "ijk=-jik=-ikj", "ijk=-kij"]),
    random_irreps(min_terms=1, max_terms=2, l_max=2, multiplicities=(1, 2)),
    random_irreps(min_terms=1, max_terms=2, l_max=1, multiplicities=(0, 1)),
    st.none() | st.sets(st.sampled_from(["0e", "1o", "1e", "2e"])),
)
def test_equals_e3nn_for_random_arguments(formula, irreps, other, kept):
    given = {"i": str(irreps)} | ({"k": str(other)} if formula == "ijk=jik" else {})
    try:
        ours, theirs = both(formula, kept, None, given, load=False)
    except (RuntimeError, ValueError) as error:
        # e3nn cannot join no blocks
        assert "empty" in str(error) or "non-empty" in str(error)
        assert o3.ReducedTensorProducts(formula, kept, **given).irreps_out.dim == 0
        return
    assert_same_basis(ours, theirs)
    xs = inputs_of(ours, 2)
    assert torch.allclose(ours(*xs), theirs(*xs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_symmetric_orthonormal_and_contracted(case):
    torch.set_default_dtype(torch.float64)
    module = o3.ReducedTensorProducts(*case[:3], **case[3])
    basis = module.change_of_basis
    for sign, p in IndexSymmetry.parse(case[0]).group:
        # T[x_p] as a function of x
        turned = basis.permute(0, *(1 + p.index(k) for k in range(len(p))))
        assert torch.allclose(sign * turned, basis, atol=1e-12)
    rows = basis.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-12)
    xs = inputs_of(module)
    assert torch.allclose(module(*xs), contraction(module, *xs), rtol=1e-12, atol=1e-12)


def test_counts_the_whole_symmetric_space():
    torch.set_default_dtype(torch.float64)
    for formula, d, expected in (
        ("ij=ji", 9, 45),
        ("ij=-ji", 9, 36),
        (SYMMETRIC, 9, 165),
        ("ijk=-jik=-ikj", 9, 84),
        ("ijk=jki", 9, 249),
        ("ij=-ij", 9, 0),
        ("ijk", 4, 64),
    ):
        irreps = "1x0e+1x1o+1x2e" if d == 9 else "1x0e+1x1o"
        module = o3.ReducedTensorProducts(formula, **dict.fromkeys(formula.split("=")[0], irreps))
        assert module.irreps_out.dim == expected == len(module.change_of_basis)
        assert module(*inputs_of(module, 2)).shape == (2, expected)


def test_is_equivariant():
    torch.set_default_dtype(torch.float64)
    module = o3.ReducedTensorProducts(SYMMETRIC, i="1x0e+1x1o+1x2e+1x3o", filter_ir_out=["0e", "1o", "2e"])
    rotation = -o3.rand_matrix()
    xs = inputs_of(module, 3)
    turned = [x @ irreps.D_from_matrix(rotation).T for x, irreps in zip(xs, module.irreps_in, strict=True)]
    expected = module(*xs) @ module.irreps_out.D_from_matrix(rotation).T
    assert torch.allclose(module(*turned), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "batches",
    [((), (), ()), ((2, 3), (3,), ()), ((0,), (0,), (1,)), ((1,), (4,), (4,)), ((2, 1), (1, 3), ())],
)
def test_leading_dimensions_broadcast(batches):
    ours, theirs = both("ijk=jik", None, None, {"i": "1x0e+1x1o", "k": "1x1o"})
    xs = [torch.randn(*batch, width) for batch, width in zip(batches, (4, 4, 3), strict=True)]
    out = ours(*xs)
    assert out.shape == (*torch.broadcast_shapes(*batches), ours.irreps_out.dim)
    # e3nn joins results of different shapes where an output needs no broadcast: it is given them broadcast
    whole = [x.expand(*out.shape[:-1], x.shape[-1]) for x in xs]
    assert torch.allclose(out, theirs(*whole), rtol=1e-12, atol=1e-12)


def test_one_tensor_as_every_input():
    ours, theirs = both(SYMMETRIC, ["0e", "1o"], None, {"i": "1x0e+1x1o+1x2e"})
    assert_same_function(lambda x: ours(x, x, x), lambda x: theirs(x, x, x), [torch.randn(3, 9)])


def test_dtype_of_the_basis():
    module = o3.ReducedTensorProducts("ij=ji", i="1x0e+1x1o")
    assert module.change_of_basis.dtype == torch.float32
    assert next(iter(module.state_dict())) == "change_of_basis" and not list(module.parameters())
    assert module.double()(*(x.double() for x in inputs_of(module, 2))).dtype == torch.float64


def test_copies_and_compilers():
    module = o3.ReducedTensorProducts(SYMMETRIC, ["0e", "1o"], i="1x0e+1x1o")
    xs = inputs_of(module, 4)
    assert_copies_compute_the_same(module, *xs)
    assert_compiles_whole(module, *xs)


class TestStateDict:
    CASE = (SYMMETRIC, ["0e", "1o", "1e"], None, {"i": "2x1o+1x2e"})

    def flipped(self, state, irreps, chosen):
        """The checkpoint with the sign of some irreps of the output changed, as another phase would."""
        table = state["change_of_basis"].clone()
        signs = [-1.0 if i in chosen else 1.0 for i in range(irreps.num_irreps)]
        dims = torch.tensor([ir.dim for mul, ir in irreps for _ in range(mul)])
        table *= torch.tensor(signs).repeat_interleave(dims)[:, None, None, None]
        return state | {"change_of_basis": table}

    def test_signs_are_absorbed(self):
        ours, theirs = both(*self.CASE)
        xs = inputs_of(ours, 3)
        before = ours(*xs)
        state = self.flipped(theirs.state_dict(), ours.irreps_out, {0, 2, 3})
        keys = set(state)
        ours.load_state_dict(state)
        assert set(state) == keys
        out = ours(*xs)
        assert torch.allclose(out[0], contraction(ours, *(x[0] for x in xs)), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(out, before)
        # ours keeps them, and the present phase comes back
        again = o3.ReducedTensorProducts(*self.CASE[:3], **self.CASE[3])
        again.load_state_dict(ours.state_dict())
        assert torch.equal(again(*xs), out)
        again.load_state_dict(theirs.state_dict())
        assert torch.equal(again(*xs), before)

    @pytest.mark.parametrize("compiled", [False, True])
    def test_signs_travel_with_the_buffer(self, compiled):
        """As DistributedDataParallel and averages of models copy it."""
        if compiled and torch.__version__ < torch.torch_version.TorchVersion("2.13"):
            pytest.skip("torch's compiler cannot ask about a module")
        ours, theirs = both(*self.CASE)
        ours.load_state_dict(self.flipped(theirs.state_dict(), ours.irreps_out, {0, 2, 3}))
        other = o3.ReducedTensorProducts(*self.CASE[:3], **self.CASE[3])
        other.change_of_basis.copy_(ours.change_of_basis)
        xs = inputs_of(ours, 3)
        torch._dynamo.reset()
        call = torch.compile(other, fullgraph=True, backend="eager") if compiled else other
        assert torch.equal(call(*xs), ours(*xs))
        assert torch.equal(copy.deepcopy(other)(*xs), ours(*xs))
        other.change_of_basis.mul_(2)
        with pytest.raises(RuntimeError, match="something wrote to change_of_basis"):
            other(*xs)

    def test_float32_checkpoint(self):
        ours, theirs = both(*self.CASE)
        xs = inputs_of(ours, 3)
        before = ours(*xs)
        ours.load_state_dict({name: value.float() for name, value in theirs.state_dict().items()})
        assert torch.equal(ours(*xs), before)

    @pytest.mark.parametrize(
        "change", [lambda t: 2 * t, lambda t: t.roll(1, 0), lambda t: torch.zeros_like(t), lambda t: t + 1e-3]
    )
    def test_another_basis_is_refused(self, change):
        ours, theirs = both(*self.CASE)
        xs = inputs_of(ours, 3)
        before, table = ours(*xs), ours.change_of_basis.clone()
        state = theirs.state_dict()
        state["change_of_basis"] = change(state["change_of_basis"])
        message = (
            "change_of_basis is not that of 'ijk' up to a sign of each irrep: the checkpoint was written"
        )
        with pytest.raises(RuntimeError, match=message):
            ours.load_state_dict(state)
        assert torch.equal(ours(*xs), before) and torch.equal(ours.change_of_basis, table)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_loads_into_e3nn_and_back(self, case):
        ours, theirs = both(*case, load=False)
        kept = theirs.state_dict()
        state = ours.state_dict()
        assert state.keys() == kept.keys()
        for key, value in kept.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-12)
        inputs = inputs_of(ours, 3)
        expected = theirs(*inputs)
        theirs.load_state_dict(state, strict=True)
        torch.testing.assert_close(theirs(*inputs), expected)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(ours(*inputs), expected)

    def test_constants_of_other_numbers_are_left(self):
        """Python numbers e3nn's products, as it orders a set: elsewhere "tp0" may be another one."""
        ours = o3.ReducedTensorProducts("ij=ji", i="1o+2e")
        state = ours.state_dict()
        other = {key.replace(".tp", ".tp1"): value for key, value in state.items() if ".tp" in key}
        ours.load_state_dict({"change_of_basis": state["change_of_basis"], **other}, strict=True)
        for key, value in ours.state_dict().items():
            assert torch.equal(value, state[key])

    @pytest.mark.parametrize("assign", [True, False])
    def test_built_on_the_meta_device(self, assign):
        torch.set_default_dtype(torch.float64)
        ours, _ = both(*self.CASE)
        state = ours.state_dict()
        first = slice(0, ours.irreps_out[0].ir.dim)
        flipped = state["change_of_basis"].clone()
        flipped[first] *= -1
        xs = [torch.randn(3, irreps.dim) for irreps in ours.irreps_in]
        expected = ours(*xs)
        with torch.device("meta"):
            formula, filter_ir_out, filter_ir_mid, irreps = self.CASE
            module = o3.ReducedTensorProducts(formula, filter_ir_out, filter_ir_mid, **irreps)
        if not assign:
            module.to_empty(device="cpu")
        module.load_state_dict({"change_of_basis": flipped}, assign=assign)
        assert torch.equal(module.change_of_basis, flipped)
        expected[:, first] *= -1
        torch.testing.assert_close(module(*xs), expected, rtol=1e-13, atol=1e-13)
        module.load_state_dict(state)
        expected[:, first] *= -1
        torch.testing.assert_close(module(*xs), expected, rtol=1e-13, atol=1e-13)

    def test_other_keys(self):
        ours, theirs = both(*self.CASE)
        state = theirs.state_dict()
        with pytest.raises(RuntimeError, match=r"Unexpected key.*main\.other"):
            ours.load_state_dict(state | {"main.other": torch.zeros(1)})
        with pytest.raises(RuntimeError, match="size mismatch for change_of_basis"):
            ours.load_state_dict({"change_of_basis": state["change_of_basis"][:-1]})
        with pytest.raises(RuntimeError, match="Missing key"):
            ours.load_state_dict({})


class TestIndexSymmetry:
    @pytest.mark.parametrize(
        "formula, order",
        [("i", 1), ("ij", 1), ("ij=ji", 2), ("ij=-ji", 2), (SYMMETRIC, 6), ("ijk=jki", 3), ("ij=-ij", 2)],
    )
    def test_group(self, formula, order):
        symmetry = IndexSymmetry.parse(formula)
        assert len(symmetry.group) == order
        elements = set(symmetry.group)
        for (s, p), (t, q) in itertools.product(elements, elements):
            assert (s * t, tuple(p[i] for i in q)) in elements
        assert (1, tuple(range(len(symmetry.indices)))) in elements

    def test_spaces(self):
        assert IndexSymmetry.parse(" ij = - ji ") == IndexSymmetry.parse("ij=-ji")
