"""ProductPlan: e3nn 0.6's normalisation to the last bit, the canonical string, and what is refused."""

import copy
import dataclasses
import math
import pickle

import pytest
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from clebsch import reference
from clebsch.algebra import so3
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import MODES, Path, ProductPlan
from clebsch.reference.tensor_product import terms
from clebsch.testing import random_plans

EXAMPLE = "16x0e+16x1o*1x0e+1x1o->16x0e+16x1o;mul_ir;0 0 0 uvu w 1.0,1 1 0 uvu - 0.5773502691896258"

# One block for each mode, with the smallest multiplicities that tell all indices apart.
ONE_OF_EACH = {
    "uvw": ("2x1o", "3x1o", "4x2e"),
    "uvu": ("2x1o", "3x1o", "2x2e"),
    "uvv": ("2x1o", "3x1o", "3x2e"),
    "uuw": ("3x1o", "3x1o", "4x2e"),
    "uuu": ("3x1o", "3x1o", "3x2e"),
    "uvuv": ("2x1o", "3x1o", "6x2e"),
    "uvu<v": ("4x1o", "4x1o", "6x2e"),
    "u<vw": ("4x1o", "4x1o", "5x2e"),
}


def of_e3nn(plan, instructions, **options):
    """e3nn's product of the same irreps, its code not generated."""
    irreps = (str(plan.irreps_in1), str(plan.irreps_in2), str(plan.irreps_out))
    return o3.TensorProduct(*irreps, instructions, compile_left_right=False, **options)


# Normalisation


@given(random_plans(l_max=3), st.data())
def test_coefficients_are_those_of_e3nn(plan, data):
    def variances(irreps):
        return data.draw(
            st.none()
            | st.lists(st.sampled_from((0.0, 0.3, 1.0, 7.0)), min_size=len(irreps), max_size=len(irreps))
        )

    instructions = [
        (
            p.i_in1,
            p.i_in2,
            p.i_out,
            p.mode,
            p.has_weight,
            *data.draw(st.sampled_from(((), (0.0,), (0.3,), (2,)))),
        )
        for p in plan.paths
    ]
    options = {
        "irrep_normalization": data.draw(st.sampled_from((None, "component", "norm", "none"))),
        "path_normalization": data.draw(st.sampled_from((None, "element", "path", "none"))),
        "in1_var": variances(plan.irreps_in1),
        "in2_var": variances(plan.irreps_in2),
        "out_var": variances(plan.irreps_out),
    }
    expected = of_e3nn(plan, instructions, **options)
    ours = ProductPlan.from_instructions(
        plan.irreps_in1, plan.irreps_in2, plan.irreps_out, instructions, **options
    )
    assert [p.coefficient for p in ours.paths] == [i.path_weight for i in expected.instructions]
    assert list(ours.path_shapes) == [i.path_shape for i in expected.instructions]
    assert ours.weight_numel == expected.weight_numel


@pytest.mark.parametrize("path_normalization", ["element", "path", "none"])
@pytest.mark.parametrize("irrep_normalization", ["component", "norm", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_and_normalization_against_e3nn(mode, irrep_normalization, path_normalization):
    irreps = [Irreps(block) + "3x0e" for block in ONE_OF_EACH[mode]]
    instructions = [(0, 0, 0, mode, True), (0, 0, 0, mode, True, 0.7), (1, 1, 1, "uuu", False)]
    options = {"irrep_normalization": irrep_normalization, "path_normalization": path_normalization}
    plan = ProductPlan.from_instructions(
        *irreps, instructions, **options, in2_var=[0.5, 2.0], out_var=[3.0, 1.0]
    )
    expected = of_e3nn(plan, instructions, **options, in2_var=[0.5, 2.0], out_var=[3.0, 1.0])
    assert [p.coefficient for p in plan.paths] == [i.path_weight for i in expected.instructions]
    assert plan.path_shapes == tuple(i.path_shape for i in expected.instructions)


def test_stored_instructions_of_e3nn_are_taken_as_they_are():
    tp = o3.FullyConnectedTensorProduct("3x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o+1x2e")
    plan = ProductPlan.from_instructions(tp.irreps_in1, tp.irreps_in2, tp.irreps_out, tp.instructions)
    assert [p.coefficient for p in plan.paths] == [i.path_weight for i in tp.instructions]


def test_signs_of_e3nn_04_go_into_the_coefficients():
    irreps = ("4x1o", "1x2e", "4x1o+4x2o+4x3o")
    instructions = [(0, 0, i, "uvu", True) for i in range(3)]
    new, old = (
        ProductPlan.from_instructions(*irreps, instructions, signs=signs)
        for signs in ("e3nn-0.5", "e3nn-0.4")
    )
    signs = [b.coefficient / a.coefficient for a, b in zip(new.paths, old.paths, strict=True)]
    assert signs == [1, -1, 1]
    assert [so3.changes_sign(1, 2, l) for l in (1, 2, 3)] == [False, True, False]


# The canonical string


def test_the_string():
    paths = (Path(0, 0, 0, "uvu", True, 1.0), Path(1, 1, 0, "uvu", False, 0.5773502691896258))
    plan = ProductPlan("16x0e+16x1o", "0e + 1o", "16x0e+16x1o", paths)
    assert str(plan) == EXAMPLE
    assert ProductPlan.parse(EXAMPLE) == plan
    assert str(ProductPlan("", "", "", ())) == "*->;mul_ir;"
    assert ProductPlan.parse("*->;ir_mul;").layout == "ir_mul"


@given(random_plans())
def test_parse_is_the_inverse_of_str(plan):
    again = ProductPlan.parse(str(plan))
    assert again == plan and hash(again) == hash(plan) and str(again) == str(plan)
    assert {plan: 1}[again] == 1


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_coefficients_survive_the_string(coefficient):
    plan = ProductPlan("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uuu", False, coefficient)])
    again = ProductPlan.parse(str(plan))
    assert again.paths[0].coefficient == coefficient and again == plan and hash(again) == hash(plan)


def test_there_is_one_zero():
    plans = {ProductPlan("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uuu", False, zero)]) for zero in (0.0, -0.0, 0)}
    assert len(plans) == 1


@given(random_plans(l_max=2), random_plans(l_max=2))
def test_equal_if_and_only_if_the_strings_are(a, b):
    assert (a == b) == (str(a) == str(b))


def test_a_plan_is_a_value():
    plan = ProductPlan.parse(EXAMPLE)
    for duplicate in (copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert duplicate == plan and hash(duplicate) == hash(plan) and duplicate.weight_numel == 16
    assert plan != dataclasses.replace(plan, layout="ir_mul")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.layout = "ir_mul"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.paths[0].coefficient = 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ProductPlan.parse: expected 'irreps_in1*irreps_in2->irreps_out;layout;paths', got ''"),
        ("1x0e->;mul_ir;", "ProductPlan.parse: expected 'irreps_in1*irreps_in2->irreps_out;layout;paths'"),
        ("0e*1x0e->;mul_ir;", "ProductPlan.parse: not a canonical string: '0e*1x0e->;mul_ir;'"),
        ("1x0e*1x0e->1x0e;mul;", "ProductPlan: layout must be one of 'mul_ir', 'ir_mul', got 'mul'"),
        ("1x3*1x0e->1x0e;mul_ir;", "Irreps: cannot parse '1x3' in '1x3': expected [mul x] l p"),
        (
            "1x0e*1x0e->1x0e;mul_ir;0 0 0 uuu w",
            "ProductPlan.parse: expected a path 'i_in1 i_in2 i_out mode w|-",
        ),
        (
            "1x0e*1x0e->1x0e;mul_ir;0 0 0 uuu w 1",
            "ProductPlan.parse: expected a path 'i_in1 i_in2 i_out mode",
        ),
        (
            "1x0e*1x0e->1x0e;mul_ir;0 0 0 uuu x 1.0",
            "ProductPlan.parse: expected a path 'i_in1 i_in2 i_out mode",
        ),
        (
            "1x0e*1x0e->1x0e;mul_ir;0 0 0 uuu w 1.0,",
            "ProductPlan.parse: expected a path 'i_in1 i_in2 i_out mode",
        ),
        (
            "1x0e*1x0e->1x0e;mul_ir;0 0 0 uuu w nan",
            "ProductPlan: paths[0]: coefficient must be finite, got nan",
        ),
    ],
)
def test_other_strings_are_refused(text, message):
    with pytest.raises(ValueError) as error:
        ProductPlan.parse(text)
    assert str(error.value).startswith(message)


def test_parse_wants_a_string():
    with pytest.raises(TypeError, match=r"^ProductPlan.parse: expected a str, got ProductPlan$"):
        ProductPlan.parse(ProductPlan.parse(EXAMPLE))


# Validation

MODE_LIST = "'uvw', 'uvu', 'uvv', 'uuw', 'uuu', 'uvuv', 'uvu<v', 'u<vw'"


@pytest.mark.parametrize(
    ("irreps", "instruction", "message"),
    [
        (("1o", "1o", "1o"), (0, 0, 0, "uvu", True), "1o * 1o does not contain 1o, only 0e+1e+2e"),
        (("1o", "1o", "3e"), (0, 0, 0, "uvu", True), "1o * 1o does not contain 3e, only 0e+1e+2e"),
        (("1o", "1o", "1e"), (0, 0, 0, "uwu", True), f"mode must be one of {MODE_LIST}, got 'uwu'"),
        (("1o", "1o", "1e"), (0, 0, 0, None, True), f"mode must be one of {MODE_LIST}, got None"),
        (("1o", "1o", "1e"), (0.0, 0, 0, "uvu", True), "i_in1 must be an integer"),
        (("1o", "1o", "1e"), (0, 0, 0, "uvw", False), "mode 'uvw' needs has_weight = True"),
        (("1o", "1o", "1e"), (0, 0, 0, "u<vw", False), "mode 'u<vw' needs has_weight = True"),
        (
            ("2x1o", "3x1o", "3x1e"),
            (0, 0, 0, "uvu", True),
            "mode 'uvu' needs mul_out = mul_in1, got mul_in1, mul_in2, mul_out = 2, 3, 3",
        ),
        (
            ("2x1o", "3x1o", "2x1e"),
            (0, 0, 0, "uvv", True),
            "mode 'uvv' needs mul_out = mul_in2, got mul_in1, mul_in2, mul_out = 2, 3, 2",
        ),
        (
            ("2x1o", "3x1o", "2x1e"),
            (0, 0, 0, "uuw", True),
            "mode 'uuw' needs mul_in1 = mul_in2, got mul_in1, mul_in2, mul_out = 2, 3, 2",
        ),
        (
            ("3x1o", "3x1o", "2x1e"),
            (0, 0, 0, "uuw", False),
            "mode 'uuw' needs mul_in1 = mul_in2 and mul_out = 1 where it has no weights, "
            "got mul_in1, mul_in2, mul_out = 3, 3, 2",
        ),
        (
            ("3x1o", "3x1o", "2x1e"),
            (0, 0, 0, "uuu", True),
            "mode 'uuu' needs mul_in1 = mul_in2 = mul_out, got mul_in1, mul_in2, mul_out = 3, 3, 2",
        ),
        (
            ("2x1o", "3x1o", "5x1e"),
            (0, 0, 0, "uvuv", True),
            "mode 'uvuv' needs mul_out = mul_in1 mul_in2, got mul_in1, mul_in2, mul_out = 2, 3, 5",
        ),
        (
            ("4x1o", "4x1o", "5x1e"),
            (0, 0, 0, "uvu<v", True),
            "mode 'uvu<v' needs mul_in1 = mul_in2 and mul_out = mul_in1 (mul_in1 - 1) / 2, "
            "got mul_in1, mul_in2, mul_out = 4, 4, 5",
        ),
        (
            ("4x1o", "3x1o", "5x1e"),
            (0, 0, 0, "u<vw", True),
            "mode 'u<vw' needs mul_in1 = mul_in2, got mul_in1, mul_in2, mul_out = 4, 3, 5",
        ),
    ],
)
def test_impossible_instructions_are_refused(irreps, instruction, message):
    shown = ", ".join(map(repr, instruction))
    with pytest.raises(ValueError) as error:
        ProductPlan.from_instructions(*irreps, [instruction])
    assert str(error.value) == f"instructions[0] = ({shown}): {message}"
    with pytest.raises(ValueError) as error:
        ProductPlan(*irreps, [(*instruction, 1.0)])
    assert str(error.value) == f"paths[0] = ({shown}): {message}"


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ((2, 0, 0), "i_in1 must be >= 0 and < 2, the blocks of irreps_in1 = '1x0e+1x1o'"),
        ((0, -1, 0), "i_in2 must be >= 0 and < 1, the blocks of irreps_in2 = '1x0e'"),
        ((0, 0, 3), "i_out must be >= 0 and < 3, the blocks of irreps_out = '1x0e+1x1o+1x2e'"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(instruction, message):
    shown = ", ".join(map(str, instruction))
    with pytest.raises(IndexError) as error:
        ProductPlan.from_instructions(
            "0e+1o", "0e", "0e+1o+2e", [(0, 0, 0, "uuu", False), (*instruction, "uvu", True)]
        )
    assert str(error.value) == f"instructions[1] = ({shown}, 'uvu', True): {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "ir"}, "ProductPlan: layout must be one of 'mul_ir', 'ir_mul', got 'ir'"),
        (
            {"irrep_normalization": "all"},
            "irrep_normalization must be one of 'component', 'norm', 'none', got 'all'",
        ),
        (
            {"path_normalization": "all"},
            "path_normalization must be one of 'element', 'path', 'none', got 'all'",
        ),
        ({"signs": "e3nn"}, "signs must be one of 'e3nn-0.5', 'e3nn-0.4', got 'e3nn'"),
        ({"in1_var": [1, 2]}, "in1_var must have 1 entries, one per block of '2x1o', got 2"),
        ({"out_var": []}, "out_var must have 1 entries, one per block of '2x1e', got 0"),
        (
            {"instructions": [(0, 0, 0)]},
            "instructions[0]: expected (i_in1, i_in2, i_out, mode, has_weight[, path_weight]), got (0, 0, 0)",
        ),
        (
            {"instructions": [(0, 0, 0, "uvu", True, math.inf)]},
            "instructions[0]: path_weight must be finite, got inf",
        ),
        (
            {"instructions": [(0, 0, 0, "uvu", True, -2.0)]},
            "instructions[0]: the coefficient is the square root of path_weight, variances and dimensions, "
            "whose product must be >= 0, got -6.0 for path_weight -2.0",
        ),
    ],
)
def test_other_arguments_that_are_refused(changes, message):
    arguments = {
        "irreps_in1": "2x1o",
        "irreps_in2": "1o",
        "irreps_out": "2x1e",
        "instructions": [(0, 0, 0, "uvu", True)],
    }
    with pytest.raises(ValueError) as error:
        ProductPlan.from_instructions(**{**arguments, **changes})
    assert str(error.value) == message


def test_nothing_is_a_plan():
    for irreps in (("", "", ""), ("0x0e", "0x1o", "0x1o"), ("2x0e", "", "3x1o")):
        plan = ProductPlan.from_instructions(*irreps, [])
        assert plan.paths == () and plan.weight_numel == 0
    plan = ProductPlan.from_instructions("0x0e", "1x1o", "0x1o", [(0, 0, 0, "uvu", True)])
    assert plan.weight_shapes == ((0, 1),) and plan.weight_numel == 0


# Weights and entries


@given(random_plans(l_max=3))
def test_weights_follow_each_other(plan):
    offset = 0
    for path, shape, weight_shape, located in zip(
        plan.paths, plan.path_shapes, plan.weight_shapes, plan.weight_slices, strict=True
    ):
        if not path.has_weight:
            assert weight_shape is None and located is None
            continue
        assert weight_shape == shape and located == (offset, shape)
        offset += math.prod(shape)
    assert offset == plan.weight_numel


@given(random_plans())
def test_terms_are_counted(plan):
    assert sum(map(plan.num_terms, plan.paths)) == len(terms(plan).value)


def test_entries_are_the_coupling_coefficients():
    plan = ProductPlan.from_instructions("2x1o", "1x2e", "2x3o", [(0, 0, 0, "uvu", True)])
    assert plan.entries(plan.paths[0]) == so3.coupling(1, 2, 3)
    assert plan.blocks(plan.paths[0]) == ((2, (1, -1)), (1, (2, 1)), (2, (3, -1)))


def test_the_algebra_is_printed():
    assert ProductPlan.parse(EXAMPLE).algebra().splitlines() == [
        "(16x0e+16x1o) * (1x0e+1x1o) -> 16x0e+16x1o",
        "layout mul_ir, 2 paths, 16 weights",
        "    0  16x0e * 1x0e -> 16x0e  (uvu)  out0[u] += 1 W0[u,v] x0[u] y0[v];  "
        "W0 = weight[0:16] as (16, 1), 16 terms",
        "    1  16x1o * 1x1o -> 16x0e  (uvu)  out0[u] += 0.57735 x1[u] y1[v];  no weights, 48 terms",
    ]


@given(random_plans())
def test_the_algebra_has_a_line_per_path(plan):
    assert len(plan.algebra().splitlines()) == 2 + len(plan.paths)


def test_layouts_hold_the_same_numbers():
    plan = ProductPlan.from_instructions("2x1o", "1x1o", "2x2e", [(0, 0, 0, "uvu", True)])
    other = dataclasses.replace(plan, layout="ir_mul")
    x, y, w = [[1.0, 2, 3, 4, 5, 6]], [[0.5, -1, 2]], [1.0, 2]
    swapped = [[1.0, 4, 2, 5, 3, 6]]
    out = reference.tensor_product(plan, x, y, w)
    assert (
        reference.tensor_product(other, swapped, y, w).reshape(5, 2).T.ravel().tolist()
        == out.ravel().tolist()
    )
