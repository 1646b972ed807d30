"""nn.Extract and nn.ExtractIr against e3nn 0.6."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clebsch import nn, o3

e3nn_nn = pytest.importorskip("e3nn.nn")

EXTRACTS = {
    "two scalars": ("1e+0e+0e", ["0e", "0e"], [(1,), (2,)]),
    "all": ("2x1e+3x0e", ["2x1e+3x0e"], [(0, 1)]),
    "all, in a list": ("2x1e+3x0e", ["2x1e+3x0e"], [[0, 1]]),
    "another order": ("2x1e+3x0e+1x2o", ["1x2o+2x1e", "3x0e"], [(2, 0), (1,)]),
    "neighbours": ("2x1e+3x0e+1x2o", ["3x0e+1x2o"], [(1, 2)]),
    "repeated": ("2x1e+3x0e", ["3x0e+3x0e+2x1e", "3x0e"], [(1, 1, 0), (1,)]),
    "from the end": ("2x1e+3x0e", ["3x0e"], [(-1,)]),
    "another label": ("2x1e+3x0e", ["2x1o+1x1o"], [(0, 1)]),
    "nothing": ("2x1e+3x0e", ["", "3x0e"], [(), (1,)]),
    "no outputs": ("2x1e+3x0e", [], []),
    "zero multiplicities": ("0x1e+3x0e+0x2e", ["0x2e+3x0e", "0x1e"], [(2, 1), (0,)]),
    "from nothing": ("", [""], [()]),
}


@pytest.mark.parametrize("squeeze_out", [False, True])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("name", EXTRACTS)
def test_equals_e3nn(name, batch, squeeze_out):
    ours, theirs = (package.Extract(*EXTRACTS[name], squeeze_out) for package in (nn, e3nn_nn))
    assert str(ours.irreps_in) == str(theirs.irreps_in)
    assert list(map(str, ours.irreps_outs)) == list(map(str, theirs.irreps_outs))
    assert ours.instructions == theirs.instructions and not ours.state_dict()
    x = torch.randn(*batch, ours.irreps_in.dim)
    mine, its = ours(x), theirs(x)
    assert type(mine) is type(its)
    for a, b in zip(*((out,) if squeeze_out and len(EXTRACTS[name][1]) == 1 else out for out in (mine, its))):
        assert torch.equal(a, b) and a.is_contiguous()


@given(
    blocks=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.sampled_from("eo")), min_size=1, max_size=5
    ),
    data=st.data(),
)
def test_any_instructions_equal_e3nns(blocks, data):
    irreps = [f"{mul}x{l}{p}" for mul, l, p in blocks]
    index = st.integers(0, len(blocks) - 1)
    instructions = data.draw(st.lists(st.lists(index, max_size=4).map(tuple), max_size=3))
    outs = ["+".join(irreps[i] for i in blocks) for blocks in instructions]
    x = torch.randn(3, o3.Irreps("+".join(irreps)).dim)
    results = [package.Extract("+".join(irreps), outs, instructions)(x) for package in (nn, e3nn_nn)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("ir", ["0e", "1o", "2e", "5o"])
def test_extract_ir_equals_e3nn(ir):
    irreps = "3x0e+2x1o+1x0e+1x2e+4x1o"
    ours, theirs = nn.ExtractIr(irreps, ir), e3nn_nn.ExtractIr(irreps, ir)
    assert str(ours.irreps_out) == str(theirs.irreps_out)
    x = torch.randn(4, 27)
    assert torch.equal(ours(x), theirs(x))


def test_results_share_no_memory_with_the_input():
    x = torch.randn(4, 9)
    before = x.clone()
    for layer in (nn.Extract("2x1e+3x0e", ["3x0e", "2x1e+3x0e"], [(1,), (0, 1)]),):
        for out in layer(x):
            out.fill_(1.0)
    nn.ExtractIr("9x0e", "0e")(x).fill_(1.0)
    assert torch.equal(x, before)


def test_integers_and_half_precision_pass():
    layer = nn.Extract("2x1e+3x0e", ["3x0e"], [(1,)], squeeze_out=True)
    for dtype in (torch.int64, torch.bool, torch.bfloat16):
        assert layer(torch.ones(2, 9, dtype=dtype)).dtype == dtype


def test_derivatives_and_copies():
    layer = nn.Extract(*EXTRACTS["repeated"])
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(torch.equal(a, b) for a, b in zip(other(x), layer(x), strict=True))


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (
            ValueError,
            "instructions must have one entry per output, 2 in all, got 1",
            ("2x1e+3x0e", ["2x1e", "3x0e"], [(0,)]),
        ),
        (
            ValueError,
            "instructions[1] must list one block per block of '3x0e', 1 in all, got 2",
            ("2x1e+3x0e", ["2x1e", "3x0e"], [(0,), (1, 0)]),
        ),
        (
            IndexError,
            "instructions[0] must list blocks of irreps_in = '2x1e+3x0e', 2 in all, got 2",
            ("2x1e+3x0e", ["3x0e"], [(2,)]),
        ),
        (
            ValueError,
            "instructions[0] takes '2x1e', of dimension 6, where the output has '3x0e', of dimension 3",
            ("2x1e+3x0e", ["3x0e"], [(0,)]),
        ),
    ],
)
def test_bad_instructions(error, message, arguments):
    with pytest.raises(error, match=f"^{re.escape('Extract: ' + message)}$"):
        nn.Extract(*arguments)


@pytest.mark.parametrize(
    "error, message, value",
    [
        (TypeError, "x must be a tensor, got list", [1.0] * 9),
        (ValueError, "x must have shape (..., 9), got (2, 8)", torch.ones(2, 8)),
        (ValueError, "x must have shape (..., 9), got ()", torch.ones(())),
    ],
)
def test_bad_input(error, message, value):
    with pytest.raises(error, match=f"^{re.escape('Extract: ' + message)}$"):
        nn.Extract("2x1e+3x0e", ["3x0e"], [(1,)])(value)
