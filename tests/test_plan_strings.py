"""The C++ parser of plans: it reads what Python writes, and refuses everything else with a sentence."""

import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from clebsch import backend, ops  # noqa: F401  ops loads the operators
from clebsch.algebra.plan import ProductPlan
from clebsch.testing import random_plans

GOOD = "16x0e+16x1o*1x0e+1x1o->16x0e+16x1o;mul_ir;0 0 0 uvu w 1.0,1 1 0 uvu - 0.5773502691896258"


def describe(text):
    return backend.native().describe_plan(text)


@settings(max_examples=200, derandomize=True)
@given(random_plans(l_max=10))
def test_reads_what_python_writes(plan):
    found = backend.describe_plan(plan)
    assert found == describe(str(plan))
    assert found["dim1"] == plan.irreps_in1.dim
    assert found["dim2"] == plan.irreps_in2.dim
    assert found["dim_out"] == plan.irreps_out.dim
    assert found["weight_numel"] == plan.weight_numel
    # a block without copies is not worth a path
    paths = [path for path in plan.paths if all(block.mul for block in plan.blocks(path))]
    assert len(found["paths"]) == len(paths)
    for path, described in zip(paths, found["paths"], strict=True):
        entries = plan.entries(path)
        assert described["degrees"] == tuple(block.ir.l for block in plan.blocks(path))
        assert described["terms"] == len(entries)
        assert described["cells"] == len({(e.m1, e.m3) for e in entries})


@pytest.mark.parametrize(
    "text, dims",
    [
        ("*->;mul_ir;", (0, 0, 0)),
        ("*->;ir_mul;", (0, 0, 0)),
        ("3x2e*->;mul_ir;", (15, 0, 0)),
        ("0x2e*1x0e->0x2e;mul_ir;0 0 0 uvu w 1.0", (0, 1, 0)),
        ("1x0e*1x0e->1x0e;mul_ir;0 0 0 uvw w 1e-320", (1, 1, 1)),
        ("1x0e*1x0e->1x0e;mul_ir;0 0 0 uvw w -1.7976931348623157e+308", (1, 1, 1)),
    ],
)
def test_plans_at_the_edge(text, dims):
    found = describe(text)
    assert (found["dim1"], found["dim2"], found["dim_out"]) == dims


WHOLE = "expected '<irreps1>*<irreps2>-><irreps_out>;<layout>;<paths>'"
SPACES = "expected '<irreps1>*<irreps2>-><irreps_out>'"
PATH = "expected 'i1 i2 i_out mode w|- coefficient'"
SELECTED = "1x0e+1x0o+1x1o+1x1e+1x3o*1x0e+1x0o+1x1o->1x0e+1x0o+1x1o+1x2e"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", f"{WHOLE} in ''"),
        ("nonsense", f"{WHOLE} in 'nonsense'"),
        (";;", f"{SPACES} in ';;'"),
        (GOOD + ";", f"{WHOLE} in '{GOOD};'"),
        (GOOD.replace(";mul_ir", ""), WHOLE),
        (GOOD.replace("*", "+"), SPACES),
        (GOOD.replace("->", "+"), SPACES),
        ("1x0e->1x0e*1x0e;mul_ir;", SPACES),
        (GOOD.replace("mul_ir", "ir"), "unknown layout 'ir'"),
        (GOOD.replace("mul_ir", "Mul_ir"), "unknown layout 'Mul_ir'"),
        (GOOD.replace("mul_ir", ""), "unknown layout ''"),
    ],
)
def test_another_shape(text, message):
    check_refused(text, message)


@pytest.mark.parametrize(
    "irreps, message",
    [
        ("16", "expected <mul>x<l><parity>"),
        ("0e", "expected <mul>x<l><parity>"),
        ("16x", "expected <mul>x<l><parity>"),
        ("16xe", "expected <mul>x<l><parity>"),
        ("+1x0e", "expected <mul>x<l><parity>"),
        ("1x0e+", "expected <mul>x<l><parity>"),
        ("1x0e++1x0e", "expected <mul>x<l><parity>"),
        ("1x00", "expected parity e or o"),
        ("1x0y", "expected parity e or o"),
        ("1x0E", "expected parity e or o"),
        ("1x0e ", "expected parity e or o"),
        (" 1x0e", "cannot read a number ' 1'"),
        ("1 x0e", "cannot read a number '1 '"),
        ("x0e", "cannot read a number ''"),
        ("1.5x0e", "cannot read a number '1.5'"),
        ("+1x0e", "expected <mul>x<l><parity>"),
        ("1x1xe", "cannot read a number '1x'"),
        ("-1x0e", "multiplicity outside 0..1048576"),
        ("1x-1e", "degree outside 0..100"),
        ("1x0e\0", "expected parity e or o"),
        ("1x0\0e", "cannot read a number"),
        ("\u0661x0e", "cannot read a number '\u0661'"),
    ],
)
@pytest.mark.parametrize("slot", range(3))
def test_irreps(slot, irreps, message):
    spaces = ["1x0e"] * 3
    spaces[slot] = irreps
    check_refused("{}*{}->{};mul_ir;".format(*spaces), message)


@pytest.mark.parametrize(
    "irreps, message",
    [
        ("1048577x0e", "multiplicity outside 0..1048576"),
        ("2147483647x0e", "multiplicity outside 0..1048576"),
        ("2147483648x0e", "cannot read a number '2147483648'"),
        ("99999999999999999999x0e", "cannot read a number '99999999999999999999'"),
        ("1x101e", "degree outside 0..100"),
        ("1x2147483647e", "degree outside 0..100"),
        ("1x99999999999999999999e", "cannot read a number '99999999999999999999'"),
        ("+".join(["1048576x100e"] * 6000), "irreps too large"),
    ],
    ids=lambda text: text[:24],
)
@pytest.mark.parametrize("slot", range(3))
def test_irreps_beyond_the_limits_of_kernels(slot, irreps, message):
    spaces = ["1x0e"] * 3
    spaces[slot] = irreps
    check_refused("{}*{}->{};mul_ir;".format(*spaces), message, by_python=False)


def test_weights_beyond_the_limits_of_kernels():
    for text in (
        "1048576x0e*1048576x0e->1048576x0e;mul_ir;0 0 0 uvw w 1.0",
        "1048576x0e*1048576x0e->9x0e;mul_ir;0 0 0 u<vw w 1.0",
        "4000x0e*4000x0e->4000x0e;mul_ir;" + ",".join(["0 0 0 uvw w 1.0"] * 40),
    ):
        check_refused(text, f"too many weights in '{text}'", by_python=False)


@pytest.mark.parametrize(
    "path, message",
    [
        ("0 0 0 uvu w", PATH),
        ("0 0 0 uvu w 1.0 ", PATH),
        (" 0 0 0 uvu w 1.0", PATH),
        ("0 0  0 uvu w 1.0", PATH),
        ("0\t0 0 uvu w 1.0", PATH),
        ("0 0 0 uvu w 1.0,", f"{PATH} in ''"),
        (",0 0 0 uvu w 1.0", f"{PATH} in ''"),
        ("a 0 0 uvu w 1.0", "cannot read a number 'a'"),
        ("0 0.0 0 uvu w 1.0", "cannot read a number '0.0'"),
        (" 0 0 uvu w 1.0", "cannot read a number ''"),
        ("99999999999999999999 0 0 uvu w 1.0", "cannot read a number"),
        ("5 0 0 uvu w 1.0", "block index 5 out of range"),
        ("0 3 0 uvu w 1.0", "block index 3 out of range"),
        ("0 0 4 uvu w 1.0", "block index 4 out of range"),
        ("-1 0 0 uvu w 1.0", "block index -1 out of range"),
        ("2147483647 0 0 uvu w 1.0", "block index 2147483647 out of range"),
        ("0 0 0 uwv w 1.0", "unknown connection mode 'uwv'"),
        ("0 0 0 UVU w 1.0", "unknown connection mode 'UVU'"),
        ("0 0 0  w 1.0", "unknown connection mode ''"),
        ("0 0 0 uvu W 1.0", "expected 'w' or '-'"),
        ("0 0 0 uvu  1.0", "expected 'w' or '-'"),
        ("0 0 0 uvu True 1.0", "expected 'w' or '-'"),
        ("0 0 0 uvw - 1.0", "this connection mode needs weights"),
        ("0 0 0 u<vw - 1.0", "this connection mode needs weights"),
        ("0 0 0 uvu w one", "cannot read a number 'one'"),
        ("0 0 0 uvu w ", "cannot read a number ''"),
        ("0 0 0 uvu w 1.0f", "cannot read a number '1.0f'"),
        ("0 0 0 uvu w 0x1p3", "cannot read a number '0x1p3'"),
        ("0 0 0 uvu w +1.0", "cannot read a number '+1.0'"),
        ("0 0 0 uvu w 1e999", "cannot read a number '1e999'"),
        ("0 0 0 uvu w nan", "the coefficient must be finite"),
        ("0 0 0 uvu w inf", "the coefficient must be finite"),
        ("0 0 0 uvu w -inf", "the coefficient must be finite"),
        ("4 2 0 uvu w 1.0", "degrees violate the triangle rule"),
        ("0 0 2 uvu w 1.0", "degrees violate the triangle rule"),
        ("2 0 3 uvu w 1.0", "degrees violate the triangle rule"),
        ("0 0 1 uvu w 1.0", "the parity of the output must be the product of those of the inputs"),
        ("0 1 0 uvu w 1.0", "the parity of the output must be the product of those of the inputs"),
        ("2 2 1 uvu w 1.0", "the parity of the output must be the product of those of the inputs"),
        ("3 2 3 uvu w 1.0", "the parity of the output must be the product of those of the inputs"),
    ],
)
def test_paths(path, message):
    check_refused(f"{SELECTED};mul_ir;{path}", message)
    if "," not in path:
        check_refused(f"{SELECTED};mul_ir;0 0 0 uvu w 1.0,{path}", message)


@pytest.mark.parametrize(
    "muls, mode, weighted",
    [
        ((2, 3, 3), "uvu", "w"),
        ((2, 3, 2), "uvv", "w"),
        ((2, 3, 4), "uuw", "w"),
        ((3, 3, 4), "uuw", "-"),
        ((3, 3, 4), "uuu", "w"),
        ((3, 4, 3), "uuu", "w"),
        ((2, 3, 5), "uvuv", "w"),
        ((3, 3, 4), "uvu<v", "w"),
        ((3, 4, 3), "uvu<v", "-"),
        ((3, 4, 3), "u<vw", "w"),
        ((0, 3, 3), "uvu", "w"),
        ((1, 0, 0), "uuw", "w"),
    ],
)
def test_multiplicities(muls, mode, weighted):
    path = f"0 0 0 {mode} {weighted} 1.0"
    text = "{}x1o*{}x1o->{}x0e;mul_ir;".format(*muls) + path
    check_refused(text, f"multiplicities do not fit the connection mode in '{path}'")


def check_refused(text, message, by_python=True):
    """Every way in refuses `text` with the sentence, and Python does not take it for a plan either."""
    empty, order = torch.empty(0, 0), torch.zeros(3, dtype=torch.int64)
    for call in (
        describe,
        lambda t: torch.ops.clebsch.tensor_product(empty, empty, empty, t),
        lambda t: torch.ops.clebsch.convolution_backward(empty, empty, empty, empty, order, t, 7),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            call(text)
        assert str(caught.value).startswith(f"plan: {message}"), str(caught.value)
    if by_python:
        with pytest.raises((ValueError, IndexError)):
            ProductPlan.parse(text)


def test_a_refused_string_is_refused_again():
    for _ in range(2):
        check_refused(GOOD.replace("mul_ir", "ir"), "unknown layout 'ir'")


# In a process of its own: random damage may not crash, whatever it is taken for.
FUZZ = """
import random, sys
from clebsch import backend
describe = backend.native().describe_plan
random.seed(int(sys.argv[1]))
texts = sys.argv[2:]
letters = "0123456789xeo+*->;, uvw<.muli_r\\0\\xff"
good = bad = 0
for _ in range(40000):
    text = list(random.choice(texts))
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(text) + 1)
        text[at : at + random.choice((0, 1, 1, 4))] = random.choices(letters, k=random.choice((0, 1, 1, 3)))
    try:
        describe("".join(text))
        good += 1
    except ValueError as error:
        assert str(error).startswith("plan: "), error
        bad += 1
print(good, bad)
"""


def test_damaged_strings_do_not_crash():
    texts = [
        GOOD,
        "3x2e+1x0o*4x1o->3x3o+12x1o;ir_mul;0 0 0 uvu w 1.0,0 0 1 uvuv - -0.25,0 0 0 uvu - 2e-05",
        "4x1o*4x1o->6x1e+5x2e;mul_ir;0 0 0 uvu<v w 1.0,0 0 1 u<vw w 0.5",
    ]
    for text in texts:
        ProductPlan.parse(text)
    seed = str(random.Random(0).randrange(10**6))
    result = subprocess.run(
        [sys.executable, "-c", FUZZ, seed, *texts], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    good, bad = map(int, result.stdout.split())
    assert good > 100 and bad > 10000
