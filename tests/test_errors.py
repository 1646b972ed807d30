"""Bad input: one clear sentence each, word for word, of the right type, and nothing is changed by it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from clebsch import Graph, nn, o3, ops
from clebsch.ops.tensor_product import plan_sizes
from product_calls import same_bits

TWO_PATHS = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True)]
PRODUCT = ("4x0e+4x1o", "1x0e+1x1o", "4x0e", TWO_PATHS)


def product(**options):
    return o3.TensorProduct(*PRODUCT, shared_weights=False, **options)


@contextmanager
def raises(error: type[Exception], message: str, *given: Any) -> Iterator[None]:
    """The whole message; no tensor of what was given (modules, graphs, lists of these) changes a bit."""
    tensors = list(tensors_of(given))
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        yield
    assert same_bits(tensors, before)


def tensors_of(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor) and not given.is_meta:
        yield given.detach()
    elif isinstance(given, torch.nn.Module):
        yield from tensors_of(list(given.state_dict().values()))
    elif isinstance(given, Graph):
        yield from tensors_of([given.senders, given.receivers, given.order])
    elif isinstance(given, (list, tuple)):
        for part in given:
            yield from tensors_of(part)


def operands(rows=5, dtype=torch.float32):
    return (
        torch.randn(rows, 16, dtype=dtype),
        torch.randn(rows, 4, dtype=dtype),
        torch.randn(rows, 8, dtype=dtype),
    )


def with_operand(i, value, rows=5):
    given = list(operands(rows))
    given[i] = value
    return given


class TestTensorProductFunction:
    plan = product().plan

    @pytest.mark.parametrize(
        "i, shape, message",
        [
            (0, (5, 15), "x must have shape (rows, 16), got (5, 15)"),
            (0, (16,), "x must have shape (rows, 16), got (16,)"),
            (0, (), "x must have shape (rows, 16), got ()"),
            (0, (1, 5, 16), "x must have shape (rows, 16), got (1, 5, 16)"),
            (1, (5, 3), "y must have shape (rows, 4) = (5, 4), got (5, 3)"),
            (1, (4, 4), "y must have shape (rows, 4) = (5, 4), got (4, 4)"),
            (2, (5, 7), "weight must have shape (rows, 8) = (5, 8), got (5, 7)"),
            (2, (4, 8), "weight must have shape (rows, 8) = (5, 8), got (4, 8)"),
            (2, (7,), "weight must have shape (rows, 8) = (5, 8) or (8,), got (7,)"),
            (2, (1, 5, 8), "weight must have shape (rows, 8) = (5, 8), got (1, 5, 8)"),
        ],
    )
    def test_shapes(self, i, shape, message):
        given = with_operand(i, torch.randn(shape))
        with raises(ValueError, f"tensor_product: {message}", given):
            ops.tensor_product(*given, self.plan)

    @pytest.mark.parametrize("i, name", [(0, "x"), (1, "y"), (2, "weight")])
    def test_types(self, i, name):
        expected = "must be float32 or float64" if i == 0 else "must have the dtype of x, float32"
        for given, message in (
            (with_operand(i, [1.0]), f"{name} must be a tensor, got list"),
            (with_operand(i, operands()[i].long()), f"{name} {expected}, got int64"),
            ([operand.half() for operand in operands()], "x must be float32 or float64, got float16"),
        ):
            with raises(TypeError, f"tensor_product: {message}", given):
                ops.tensor_product(*given, self.plan)

    @pytest.mark.parametrize("i, name", [(1, "y"), (2, "weight")])
    def test_mixed_dtypes_and_devices(self, i, name):
        given = with_operand(i, operands()[i].double())
        message = f"tensor_product: {name} must have the dtype of x, float32, got float64"
        with raises(TypeError, message, given):
            ops.tensor_product(*given, self.plan)
        given = with_operand(i, operands()[i].to("meta"))
        with raises(ValueError, f"tensor_product: {name} must be on the device of x, cpu, got meta", given):
            ops.tensor_product(*given, self.plan)

    def test_plan(self):
        with pytest.raises(ValueError, match=r"ProductPlan\.parse: expected"):
            ops.tensor_product(*operands(), "nonsense")
        with raises(TypeError, "ProductPlan.parse: expected a str, got NoneType"):
            ops.tensor_product(*operands(), None)


class TestTensorProductLayer:
    def refused(self, module, error, message, *given):
        with raises(error, f"TensorProduct: {message}", module, given):
            module(*given)

    def test_leading_dimensions(self):
        x, y, weight = operands()
        for error, message, *given in (
            (ValueError, "x must have shape (..., 16), got (1, 5, 15)", x[None, :, :15], y, weight),
            (ValueError, "y must have shape (..., 4), got (1, 5, 3)", x, y[None, :, :3], weight),
            (
                ValueError,
                "the leading dimensions of x, y and weight must broadcast, got (5,), (4,), (5,)",
                x,
                y[:4],
                weight,
            ),
            (TypeError, "x must be a tensor, got list", [x], y, weight),
            (TypeError, "y must be a tensor, got list", x, [y], weight),
        ):
            self.refused(product(), error, message, *given)

    def test_without_weights(self):
        module = o3.TensorProduct(*PRODUCT[:3], [(*path[:4], False) for path in TWO_PATHS])
        x, y, _ = operands()
        self.refused(module, TypeError, "x must be a tensor, got list", x.tolist(), y)
        self.refused(module, TypeError, "y must be a tensor, got list", x, y.tolist())
        with raises(TypeError, "tensor_product: x must be float32 or float64, got int64", x, y):
            module(x.long(), y.long())

    def test_weights(self):
        x, y, weight = operands()
        leading = "weight must have shape (..., 8) with at least one leading dimension"
        for message, *given in (
            ("weight must be given: the module has 8 weights and internal_weights=False", x, y),
            (f"{leading}, got (8,)", x, y, weight[0]),
            (f"{leading}, got (5, 7)", x, y, weight[:, :7]),
        ):
            self.refused(product(), ValueError, message, *given)
        for error, message, given in (
            (ValueError, "weight must have shape (8,) where weights are shared, got (5, 8)", weight),
            (ValueError, "weight must be a list of 2 tensors, one per weighted path, got 1", [weight[0]]),
            (
                ValueError,
                "weight[1] must have shape (4, 1), got (4, 2)",
                [torch.randn(4, 1), torch.randn(4, 2)],
            ),
            (TypeError, "weight must be a tensor, got float", 1.0),
            (TypeError, "weight[1] must be a tensor, got float", [torch.randn(4, 1), 1.0]),
        ):
            self.refused(o3.TensorProduct(*PRODUCT), error, message, x, y, given)

    @pytest.mark.parametrize(
        "instruction, error, words",
        [
            ((0, 1, 0, "uvu", True), ValueError, "0e * 1o does not contain 0e"),
            ((1, 0, 0, "uvu", True), ValueError, "1o * 0e does not contain 0e"),
            (
                (0, 0, 0, "uvx", True),
                ValueError,
                "mode must be one of 'uvw', 'uvu', 'uvv', 'uuw', 'uuu', 'uvuv'",
            ),
            ((2, 0, 0, "uvu", True), IndexError, "i_in1 must be >= 0 and < 2"),
            ((0, 0, 0, "uuu", True), ValueError, "mode 'uuu' needs mul_in1 = mul_in2 = mul_out"),
            ((0, 0, 0), ValueError, "expected (i_in1, i_in2, i_out, mode, has_weight[, path_weight])"),
            ((0, 0, 0, "uvw", False), ValueError, "mode 'uvw' needs has_weight = True"),
            ((0, 0, 0, "uvu", True, -1.0), ValueError, "path_weight"),
        ],
    )
    @pytest.mark.parametrize("layer", [o3.TensorProduct, nn.TensorProductConv])
    def test_instructions(self, layer, instruction, error, words):
        with pytest.raises(error, match=re.escape(words)) as caught:
            layer(*PRODUCT[:3], [TWO_PATHS[0], instruction])
        assert str(caught.value).startswith("instructions[1]")

    @pytest.mark.parametrize(
        "text", ["4x0e+", "4x0", "4y0e", "-1x0e", "1.5x0e", "4x0e 4x1o", "e", "4x1q", "4x-1e"]
    )
    def test_irreps(self, text):
        with pytest.raises(ValueError, match=r"^Irreps: cannot parse"):
            o3.TensorProduct(text, "1x0e", "1x0e", [])

    def test_options(self):
        with pytest.raises(ValueError, match=r"^path_normalization must be one of"):
            product(path_normalization="paths")
        with pytest.raises(ValueError, match=r"^irrep_normalization must be one of"):
            product(irrep_normalization="components")
        with pytest.raises(
            ValueError, match=r"^ProductPlan: layout must be one of 'mul_ir', 'ir_mul', got 'x'"
        ):
            product(layout="x")
        with raises(
            ValueError,
            "TensorProduct: internal_weights=True needs shared_weights=True: weights that the module holds "
            "are the same for every row",
        ):
            product(internal_weights=True)
        with pytest.raises(ValueError, match=r"^in1_var must have 2 entries, one per block of"):
            product(in1_var=[1.0])
        with raises(
            ValueError,
            "ElementwiseTensorProduct: irreps_in1 and irreps_in2 must have the same number of irreps, "
            "got 2 and 3",
        ):
            o3.ElementwiseTensorProduct("2x0e", "3x0e")


class TestGraph:
    indices = torch.tensor([0, 1, 2])

    @pytest.mark.parametrize("name", ["senders", "receivers"])
    @pytest.mark.parametrize(
        "value, error, message",
        [
            (torch.tensor([0, 1, 3]), IndexError, "must lie in [0, num_nodes) = [0, 3), got 3"),
            (torch.tensor([0, 7, 3]), IndexError, "must lie in [0, num_nodes) = [0, 3), got 7"),
            (torch.tensor([0, -1, 2]), IndexError, "must lie in [0, num_nodes) = [0, 3), got -1"),
            (torch.tensor([0.0, 1.0, 2.0]), TypeError, "must be int64 or int32, got float32"),
            (torch.tensor([True, False, True]), TypeError, "must be int64 or int32, got bool"),
            (torch.zeros(3, 1, dtype=torch.int64), ValueError, "must have shape (num_edges,), got (3, 1)"),
            (torch.tensor(0), ValueError, "must have shape (num_edges,), got ()"),
            ([0, 1, 2], TypeError, "must be a tensor, got list"),
        ],
    )
    def test_indices(self, name, value, error, message):
        given = {"senders": self.indices, "receivers": self.indices, "num_nodes": 3} | {name: value}
        with raises(error, f"Graph: {name} {message}", list(given.values())):
            Graph(**given)

    def test_lengths_and_devices(self):
        with raises(ValueError, "Graph: receivers must have the shape of senders, (3,), got (2,)"):
            Graph(self.indices, self.indices[:2], 3)
        with raises(ValueError, "Graph: receivers must be on the device of senders, cpu, got meta"):
            Graph(self.indices, self.indices.to("meta"), 3)

    @pytest.mark.parametrize(
        "num_nodes, error, message",
        [
            (-1, ValueError, "num_nodes must be >= 0, got -1"),
            (3.0, TypeError, "num_nodes must be an int, got float"),
            (torch.tensor(3), TypeError, "num_nodes must be an int, got Tensor"),
            (None, TypeError, "num_nodes must be an int, got NoneType"),
            (2, IndexError, "senders must lie in [0, num_nodes) = [0, 2), got 2"),
            (0, IndexError, "senders must lie in [0, num_nodes) = [0, 0), got 0"),
        ],
    )
    def test_num_nodes(self, num_nodes, error, message):
        with raises(error, f"Graph: {message}"):
            Graph(self.indices, self.indices, num_nodes)

    def test_edge_index(self):
        edge_index = torch.stack((self.indices, self.indices))
        with raises(ValueError, "Graph: edge_index must have shape (2, num_edges), got (3, 2)"):
            Graph.from_edge_index(edge_index.T, 3, sender_row=0)
        with raises(ValueError, "Graph: sender_row must be 0 or 1, got 2"):
            Graph.from_edge_index(edge_index, 3, sender_row=2)
        with raises(TypeError, "Graph: edge_index must be a tensor, got list"):
            Graph.from_edge_index(edge_index.tolist(), 3, sender_row=0)
        with pytest.raises(TypeError, match="sender_row"):
            Graph.from_edge_index(edge_index, 3)

    @pytest.mark.not_emulated("kernels for GPUs have no words for what was given")
    @pytest.mark.parametrize("bad", [3, -1, 2**62])
    def test_the_operator_checks_too(self, bad):
        # torch.compile and torch.export skip the check in Python.
        message = f"graph_order: receivers must lie in [0, num_nodes) = [0, 3), got {bad} at edge 1"
        receivers = torch.tensor([0, bad, 1])
        with raises(IndexError, message, self.indices, receivers):
            torch.ops.clebsch.graph_order(self.indices, receivers, 3)


class TestConvolution:
    layer = nn.TensorProductConv(*PRODUCT)
    graph = Graph(torch.tensor([0, 1, 2, 2, 0]), torch.tensor([1, 1, 1, 0, 0]), 3)

    def given(self):
        return [torch.randn(3, 16), torch.randn(5, 4), torch.randn(5, 8)]

    @pytest.mark.parametrize(
        "i, shape, message",
        [
            (0, (5, 16), "x must have shape (num_nodes, 16) = (3, 16), got (5, 16)"),
            (0, (3, 15), "x must have shape (num_nodes, 16) = (3, 16), got (3, 15)"),
            (1, (3, 4), "y must have shape (num_edges, 4) = (5, 4), got (3, 4)"),
            (1, (5, 5), "y must have shape (num_edges, 4) = (5, 4), got (5, 5)"),
            (2, (3, 8), "weight must have shape (num_edges, 8) = (5, 8), got (3, 8)"),
        ],
    )
    def test_shapes(self, i, shape, message):
        given = self.given()
        given[i] = torch.randn(shape)
        self.refused(ValueError, f"convolution: {message}", *given, self.graph)

    def refused(self, error, message, *given):
        with raises(error, message, self.layer, given):
            self.layer(*given)

    def test_types(self):
        x, y, weight = self.given()
        no_graph = torch.stack((self.graph.senders, self.graph.receivers))
        for message, *given in (
            ("x must be a tensor, got list", x.tolist(), y, weight, self.graph),
            ("x must be float32 or float64, got int64", x.long(), y, weight, self.graph),
            ("y must have the dtype of x, float32, got float64", x, y.double(), weight, self.graph),
            ("weight must have the dtype of x, float32, got float64", x, y, weight.double(), self.graph),
            ("graph must be a clebsch.Graph, got Tensor", x, y, weight, no_graph),
        ):
            self.refused(TypeError, f"convolution: {message}", *given)
        message = "weight must be given: the module has 8 weights and internal_weights=False"
        self.refused(ValueError, f"TensorProductConv: {message}", x, y, None, self.graph)

    def test_mixed_devices(self):
        x, y, weight = self.given()
        for name, *given in (
            ("y", x, y.to("meta"), weight, self.graph),
            ("weight", x, y, weight.to("meta"), self.graph),
            ("graph", x, y, weight, self.graph.to("meta")),
        ):
            message = f"convolution: {name} must be on the device of x, cpu, got meta"
            self.refused(ValueError, message, *given)


class TestLinearFunction:
    plan = o3.Linear("4x0e+3x1o", "2x0e+3x1o+5x0e")._sizes.plan

    def operands(self, dtype=torch.float32):
        shapes = ((5, 13), (37,), (7,))
        return [torch.randn(shape, dtype=dtype) for shape in shapes]

    def refused(self, error, message, i, value, biased=(0, 2)):
        given = self.operands()
        given[i] = value
        with raises(error, f"linear: {message}", given):
            ops.linear(*given, self.plan, biased)

    @pytest.mark.parametrize(
        "i, shape, message",
        [
            (0, (5, 12), "x must have shape (rows, 13), got (5, 12)"),
            (0, (13,), "x must have shape (rows, 13), got (13,)"),
            (0, (), "x must have shape (rows, 13), got ()"),
            (0, (1, 5, 13), "x must have shape (rows, 13), got (1, 5, 13)"),
            (1, (36,), "weight must have shape (37,), got (36,)"),
            (1, (5, 37), "weight must have shape (37,), got (5, 37)"),
            (1, (), "weight must have shape (37,), got ()"),
            (2, (6,), "bias must have 7 columns, got 6"),
            (2, (5, 8), "bias must have 7 columns, got 8"),
            (2, (4, 7), "bias must have shape (bias_numel,) or (rows, bias_numel) with 5 rows, got (4, 7)"),
            (2, (), "bias must have shape (bias_numel,) or (rows, bias_numel) with 5 rows, got ()"),
            (
                2,
                (1, 5, 7),
                "bias must have shape (bias_numel,) or (rows, bias_numel) with 5 rows, got (1, 5, 7)",
            ),
        ],
    )
    def test_shapes(self, i, shape, message):
        self.refused(ValueError, message, i, torch.randn(shape))

    @pytest.mark.parametrize("i, name", [(0, "x"), (1, "weight"), (2, "bias")])
    def test_types(self, i, name):
        expected = "must be float32 or float64" if i == 0 else "must have the dtype of x, float32"
        self.refused(TypeError, f"{name} must be a tensor, got list", i, [1.0])
        self.refused(TypeError, f"{name} must be a tensor, got NoneType", i, None)
        self.refused(TypeError, f"{name} {expected}, got int64", i, self.operands()[i].long())
        given = [operand.half() for operand in self.operands()]
        with raises(TypeError, "linear: x must be float32 or float64, got float16", given):
            ops.linear(*given, self.plan, (0, 2))

    @pytest.mark.parametrize("i, name", [(1, "weight"), (2, "bias")])
    def test_mixed_dtypes_and_devices(self, i, name):
        message = f"{name} must have the dtype of x, float32, got float64"
        self.refused(TypeError, message, i, self.operands()[i].double())
        message = f"{name} must be on the device of x, cpu, got meta"
        self.refused(ValueError, message, i, self.operands()[i].to("meta"))

    @pytest.mark.parametrize(
        "biased, error, message",
        [
            ((), ValueError, "bias must have 0 columns, got 7"),
            ((1,), ValueError, "biased must name blocks of the output that hold scalars, got 1"),
            ((0, 3), ValueError, "biased must name blocks of the output that hold scalars, got 3"),
            ((-1, 0), ValueError, "biased must name blocks of the output that hold scalars, got -1"),
            ((0, 2, 0), ValueError, "biased must name a block once, got 0 twice"),
            ((0.0, 2), TypeError, "biased must be a sequence of integers, got (0.0, 2)"),
            ("02", TypeError, "biased must be a sequence of integers, got '02'"),
            (None, TypeError, "biased must be a sequence of integers, got None"),
            (2, TypeError, "biased must be a sequence of integers, got 2"),
        ],
    )
    def test_biased(self, biased, error, message):
        given = self.operands()
        with raises(error, f"linear: {message}", given):
            ops.linear(*given, self.plan, biased)

    @pytest.mark.parametrize(
        "plan",
        [
            "4x0e*1x0e->4x0e;mul_ir;0 0 0 uvu w 1.0",
            "4x0e*1x0e->4x0e;mul_ir;0 0 0 uvu - 1.0",
            "2x0e*2x0e->1x0e;mul_ir;0 0 0 uvw w 1.0",
            "4x1o*1x1o->1x0e;mul_ir;0 0 0 uvw w 1.0",
            "4x0e*1x0e+1x0e->1x0e;mul_ir;0 1 0 uvw w 1.0",
            "2x0e*->2x0e;mul_ir;",
        ],
    )
    def test_plans_that_are_no_linear_layer(self, plan):
        sizes = plan_sizes(plan)
        given = torch.randn(5, sizes.in1), torch.randn(sizes.weight), torch.randn(0)
        with raises(ValueError, "linear: plan must have paths uvw with weights and one scalar as y", given):
            ops.linear(*given, plan)

    def test_plans_that_are_none(self):
        with pytest.raises(ValueError, match=r"ProductPlan\.parse: expected"):
            ops.linear(*self.operands(), "nonsense", (0, 2))
        with raises(TypeError, "ProductPlan.parse: expected a str, got NoneType"):
            ops.linear(*self.operands(), None, (0, 2))


class TestLinear:
    def test_features(self):
        module = o3.Linear("4x0e+4x1o", "2x0e")
        for error, message, given in (
            (ValueError, "shape (..., 16), got (5, 15)", torch.randn(5, 15)),
            (TypeError, "the dtype of weight, float32, got float64", torch.randn(5, 16).double()),
            (TypeError, "the dtype of weight, float32, got int64", torch.zeros(5, 16, dtype=torch.int64)),
        ):
            with raises(error, f"Linear: features must have {message}", module, given):
                module(given)
        with raises(TypeError, "Linear: features must be a tensor, got list"):
            module([1.0])
        with torch.autocast("cpu", torch.bfloat16):
            assert module(torch.randn(5, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
        with raises(ValueError, "Linear: features must have shape (..., 3, 16), got (5, 16)"):
            o3.Linear("4x0e+4x1o", "2x0e", f_in=3, f_out=2)(torch.randn(5, 16))

    def test_arguments(self):
        with raises(
            IndexError,
            "Linear: instructions[0] = (2, 0): i_in must be >= 0 and < 2, the number of blocks of "
            "irreps_in = '4x0e+4x1o'",
        ):
            o3.Linear("4x0e+4x1o", "2x0e", instructions=[(2, 0)])
        with raises(
            ValueError, "Linear: instructions[0] = (1, 0): cannot connect 1o to 0e: not the same irrep"
        ):
            o3.Linear("4x0e+4x1o", "2x0e", instructions=[(1, 0)])
        with raises(ValueError, "Linear: biases[1] must be False: block 1 of irreps_out, 2x1o, is not 0e"):
            o3.Linear("4x0e", "2x0e+2x1o", biases=[True, True])
        with raises(
            ValueError, "Linear: biases must have one entry per block of irreps_out, 2 in all, got 1"
        ):
            o3.Linear("4x0e", "2x0e+2x1o", biases=[True])
        with raises(ValueError, "Linear: path_normalization must be 'element' or 'path', got 'x'"):
            o3.Linear("4x0e", "2x0e", path_normalization="x")
        with raises(ValueError, "Linear: give both of f_in and f_out or neither, got 3 and None"):
            o3.Linear("4x0e", "2x0e", f_in=3)
        with raises(
            ValueError,
            "Linear: internal_weights=True needs shared_weights=True: weights that the module holds are the "
            "same for every row",
        ):
            o3.Linear("4x0e", "2x0e", internal_weights=True, shared_weights=False)

    def test_weights(self):
        module = o3.Linear("4x0e", "2x0e", biases=True, internal_weights=False)
        per_row = o3.Linear("4x0e", "2x0e", shared_weights=False)
        x, weight = torch.randn(5, 4), torch.randn(8)
        for layer, error, message, *given in (
            (
                module,
                ValueError,
                "weight must be given: the module needs 8 numbers per row and internal_weights=False",
                x,
            ),
            (
                module,
                ValueError,
                "bias must be given: the module needs 2 numbers per row and internal_weights=False",
                x,
                weight,
            ),
            (module, TypeError, "weight must be a tensor, got list", x, weight.tolist()),
            (module, ValueError, "weight must have shape (8,), got (5, 8)", x, torch.randn(5, 8)),
            (module, ValueError, "bias must have shape (2,), got (3,)", x, weight, torch.randn(3)),
            (per_row, ValueError, "weight must have shape (..., 8), got (5, 7)", x, torch.randn(5, 7)),
            (
                per_row,
                ValueError,
                "the leading dimensions of features and weight must broadcast, got (5,) and (4,)",
                x,
                torch.randn(4, 8),
            ),
        ):
            with raises(error, f"Linear: {message}", layer, given):
                layer(*given)

    def test_views_of_weights(self):
        module = o3.Linear("4x0e", "2x0e", biases=True)
        with raises(ValueError, "Linear: instruction 1 is a bias and has no weights", module):
            module.weight_view_for_instruction(1)
        module = o3.Linear("4x0e", "2x0e", internal_weights=False)
        with raises(ValueError, "Linear: weight must be given: internal_weights=False", module):
            module.weight_view_for_instruction(0)


class TestRight:
    def refused(self, module, error, message, *given):
        with raises(error, f"TensorProduct: {message}", module, given):
            module.right(*given)

    def test_operands(self):
        _, y, weight = operands()
        for error, message, *given in (
            (TypeError, "y must be a tensor, got list", y.tolist(), weight),
            (ValueError, "y must have shape (..., 4), got (5, 3)", y[:, :3], weight),
            (ValueError, "y must have shape (..., 4), got ()", y[0, 0], weight),
            (TypeError, "y must be float32 or float64, got int64", y.long(), weight),
            (
                TypeError,
                "weight must have the dtype of y, float64, got float32",
                y.double(),
                weight,
            ),
            (ValueError, "weight must be given: the module has 8 weights and internal_weights=False", y),
            (
                ValueError,
                "weight must have shape (..., 8) with at least one leading dimension, got (5, 7)",
                y,
                weight[:, :7],
            ),
            (
                ValueError,
                "the leading dimensions of y and weight must broadcast, got (5,) and (4,)",
                y,
                weight[:4],
            ),
        ):
            self.refused(product(), error, message, *given)
        meta = "weight must be on the device of y, cpu, got meta"
        self.refused(product(), ValueError, meta, y, weight.to("meta"))

    def test_views_of_weights(self):
        module = o3.TensorProduct(*PRODUCT[:3], [TWO_PATHS[0], (*TWO_PATHS[1][:4], False)])
        with raises(ValueError, "TensorProduct: instruction 1 has no weights", module):
            module.weight_view_for_instruction(1)
        with raises(
            ValueError,
            "TensorProduct: weight must have shape (4,) where weights are shared, got (5,)",
            module,
        ):
            list(module.weight_views(torch.randn(5)))


class TestDerivedOutputs:
    @pytest.mark.parametrize("name", ["FullTensorProduct", "ElementwiseTensorProduct", "TensorSquare"])
    def test_filters(self, name):
        arguments = ("2x0e",) if name == "TensorSquare" else ("2x0e", "2x0e")
        for given, message in (
            (
                ["0x"],
                "iterable of irreps: Irrep: cannot parse '0x': expected l p with p in e, o, y, such as '1o'",
            ),
            ("0e", "iterable of irreps, got '0e'"),
            (3, "iterable of irreps, got 3"),
            (
                [0.5],
                "iterable of irreps: Irrep: cannot parse '0.5': expected l p with p in e, o, y, such as '1o'",
            ),
        ):
            with raises(ValueError, f"{name}: filter_ir_out must be an {message}"):
                getattr(o3, name)(*arguments, filter_ir_out=given)


class TestTensorSquare:
    def test_arguments(self):
        with raises(
            ValueError,
            "TensorSquare: irrep_normalization must be one of 'component', 'norm', 'none', got 'components'",
        ):
            o3.TensorSquare("2x0e", irrep_normalization="components")
        with raises(
            ValueError, "TensorSquare: give only one of irreps_out and filter_ir_out, got '2x0e' and ['0e']"
        ):
            o3.TensorSquare("2x0e", "2x0e", ["0e"])
        with raises(
            ValueError, "Irreps: cannot parse '2x0z' in '2x0z': expected [mul x] l p with p in e, o, y"
        ):
            o3.TensorSquare("2x0z")
        with raises(ValueError, "path_normalization must be one of 'element', 'path', 'none', got 'x'"):
            o3.TensorSquare("2x0e", path_normalization="x")

    def test_operands(self):
        module, x = o3.TensorSquare("2x0e+1x1o", "3x0e", shared_weights=False), torch.randn(4, 5)
        weight = torch.randn(4, module.weight_numel)
        for error, message, *given in (
            (ValueError, "x must have shape (..., 5), got (1, 4, 4)", x[None, :, :4], weight),
            (TypeError, "x must be a tensor, got list", x.tolist(), weight),
            (ValueError, "weight must be given: the module has 12 weights and internal_weights=False", x),
            (TypeError, "weight must be a tensor, got float", x, 1.0),
        ):
            with raises(error, f"TensorSquare: {message}", module, given):
                module(*given)
        with raises(TypeError, "tensor_product: x must be float32 or float64, got int64", x, weight):
            module(x.long(), weight)


class TestNorm:
    def test_features(self):
        module, x = o3.Norm("2x0e+1x1o"), torch.randn(4, 5)
        for error, message, given in (
            (ValueError, "must have shape (..., 5), got (4, 4)", x[:, :4]),
            (ValueError, "must have shape (..., 5), got ()", x[0, 0]),
            (TypeError, "must be a tensor, got list", x.tolist()),
            (TypeError, "must be float32 or float64, got int64", x.long()),
        ):
            with raises(error, f"Norm: features {message}", module, given):
                module(given)

    def test_irreps(self):
        with raises(ValueError, "Irreps: cannot parse '' in '2x0e+': expected [mul x] l p with p in e, o, y"):
            o3.Norm("2x0e+")


class TestReducedTensorProducts:
    @pytest.mark.parametrize(
        "formula, error, message",
        [
            (
                "-ij=ji",
                ValueError,
                "formula must begin with its indices, different letters without a sign, got '-ij=ji'",
            ),
            ("", ValueError, "formula must begin with its indices, different letters without a sign, got ''"),
            (
                "iij=iji",
                ValueError,
                "formula must begin with its indices, different letters without a sign, got 'iij=iji'",
            ),
            ("ij=jk", ValueError, "formula must be permutations of 'ij' joined by '=', got 'jk' in 'ij=jk'"),
            ("ij=", ValueError, "formula must be permutations of 'ij' joined by '=', got '' in 'ij='"),
            (
                "ij=--ji",
                ValueError,
                "formula must be permutations of 'ij' joined by '=', got '-ji' in 'ij=--ji'",
            ),
            (3, TypeError, "formula must be a str, got int"),
        ],
    )
    def test_formulas(self, formula, error, message):
        with raises(error, f"ReducedTensorProducts: {message}"):
            o3.ReducedTensorProducts(formula, i="1o")

    def test_irreps(self):
        for error, message, given in (
            (ValueError, "the irreps of index 'k' must be given", {"i": "1o"}),
            (
                ValueError,
                "the irreps of 'j' must be those of 'i', with which the formula permutes it, '1x1o', "
                "got '1x1e'",
                {"i": "1o", "j": "1e", "k": "1o"},
            ),
            (
                TypeError,
                "got an unexpected keyword argument 'x': the indices of the formula are 'ijk'",
                {"i": "1o", "k": "1o", "x": "1o"},
            ),
            (
                TypeError,
                "got an unexpected keyword argument 'ij': the indices of the formula are 'ijk'",
                {"ij": "1o", "k": "1o"},
            ),
        ):
            with raises(error, f"ReducedTensorProducts: {message}"):
                o3.ReducedTensorProducts("ijk=jik", **given)
        for name in ("filter_ir_out", "filter_ir_mid"):
            message = f"ReducedTensorProducts: {name} must be an iterable of irreps, got '1o'"
            with raises(ValueError, message):
                o3.ReducedTensorProducts("ij=ji", i="1o", **{name: "1o"})

    def test_inputs(self):
        module = o3.ReducedTensorProducts("ijk=jik", i="1x0e+1x1o", k="1o")
        x, y, z = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 3)
        label = "the input of index"
        for error, message, *given in (
            (TypeError, "expected 3 inputs, one for each of the indices 'ijk', got 2", x, y),
            (ValueError, f"{label} 'k' must have shape (..., 3), got (5, 4)", x, y, x),
            (ValueError, f"{label} 'i' must have shape (..., 4), got ()", x[0, 0], y, z),
            (TypeError, f"{label} 'j' must be a tensor, got list", x, y.tolist(), z),
            (
                TypeError,
                f"{label} 'k' must have the dtype of the first, float32, got float64",
                x,
                y,
                z.double(),
            ),
            (TypeError, f"{label} 'i' must be float32 or float64, got int64", x.long(), y, z),
            (
                ValueError,
                f"{label} 'j' must be on the device of the first, cpu, got meta",
                x,
                y.to("meta"),
                z,
            ),
            (
                ValueError,
                "the leading dimensions of the inputs must broadcast, got (5,), (4,), (5,)",
                x,
                y[:4],
                z,
            ),
        ):
            with raises(error, f"ReducedTensorProducts: {message}", module, given):
                module(*given)


class TestOtherLayers:
    def test_spherical_harmonics(self):
        with raises(
            ValueError,
            "SphericalHarmonics: irreps_out = '1x0e+1x1e' contains 1e, but harmonics of degree 1 of 1x1o "
            "have parity -1",
        ):
            o3.SphericalHarmonics("0e+1e", True, irreps_in="1o")
        with raises(ValueError, "SphericalHarmonics: irreps_in must be '1o' or '1e', got '1x0e'"):
            o3.SphericalHarmonics(2, True, irreps_in="0e")
        with raises(
            ValueError,
            "SphericalHarmonics: normalization must be one of 'integral', 'component', 'norm', got 'x'",
        ):
            o3.SphericalHarmonics(2, True, "x")
        with raises(ValueError, "SphericalHarmonics: degrees must be >= 0, got -1"):
            o3.SphericalHarmonics([0, -1], True)
        with raises(
            ValueError,
            "SphericalHarmonics: irreps_out must be a degree, a list of degrees or irreps, got 1.5",
        ):
            o3.SphericalHarmonics(1.5, True)

    @pytest.mark.parametrize(
        "x, error, message",
        [
            (torch.randn(5, 4), ValueError, "x must have shape (..., 3), got (5, 4)"),
            (torch.randn(5, 1, 4), ValueError, "x must have shape (..., 3), got (5, 1, 4)"),
            (torch.tensor(1.0), ValueError, "x must have shape (..., 3), got ()"),
            ([[1.0, 0.0, 0.0]], TypeError, "x must be a float32 or float64 tensor, got list"),
            (torch.ones(5, 3).half(), TypeError, "x must be a float32 or float64 tensor, got float16"),
            (torch.ones(5, 3).long(), TypeError, "x must be a float32 or float64 tensor, got int64"),
        ],
    )
    def test_points(self, x, error, message):
        with raises(error, f"SphericalHarmonics: {message}", x):
            o3.SphericalHarmonics(2, True)(x)
        with raises(error, f"SphericalHarmonics: {message}", x):
            o3.spherical_harmonics(2, x, True)

    def test_gate_and_activation(self):
        with raises(ValueError, "Gate: irreps_scalars must be scalars, got '2x1o'"):
            nn.Gate("2x1o", [None], "", [], "")
        with raises(
            ValueError,
            "Gate: irreps_gates must have one scalar per irrep of irreps_gated, 3 in all, got 2",
        ):
            nn.Gate("4x0e", [None], "2x0e", [torch.sigmoid], "3x1o")
        with raises(
            ValueError,
            "Activation: acts must have one entry per block of irreps_in = '4x0e', 1 in all, got 2",
        ):
            nn.Activation("4x0e", [None, None])
        with raises(ValueError, "Activation: a function needs scalars, got 1o"):
            nn.Activation("4x1o", [torch.tanh])
        with raises(
            ValueError,
            "Activation: a function of 0o must be even or odd, or parity is lost; sigmoid is neither",
        ):
            nn.Activation("4x0o", [torch.sigmoid])

    @pytest.mark.parametrize(
        "name, module",
        [
            ("Gate", nn.Gate("4x0e", [None], "2x0e", [torch.sigmoid], "2x1o")),
            ("Activation", nn.Activation("8x0e+4x0o", [torch.sigmoid, torch.tanh])),
        ],
    )
    def test_features(self, name, module):
        given = torch.randn(5, 11)
        shapes = {"Gate": "have shape (..., 12), got (5, 11)"}
        size = "have size 12 along axis -1, got shape"
        message = shapes.get(name, f"{size} (5, 11)")
        with raises(ValueError, f"{name}: features must {message}", module, given):
            module(given)
        scalar = torch.tensor(1.0)
        message = {"Gate": "have shape (..., 12), got ()"}.get(name, f"{size} ()")
        with raises(ValueError, f"{name}: features must {message}", module, scalar):
            module(scalar)
        with raises(TypeError, f"{name}: features must be a tensor, got list", module):
            module(given.tolist())
        for dtype in (torch.int64, torch.bool, torch.complex64):
            given = torch.ones(5, 12, dtype=dtype)
            dtype = str(dtype).removeprefix("torch.")
            with raises(TypeError, f"{name}: features must be floating point, got {dtype}", module, given):
                module(given)

    def test_fully_connected_net(self):
        with raises(ValueError, "FullyConnectedNet: hs must be sizes >= 0, got [8, -1]"):
            nn.FullyConnectedNet([8, -1])
        net = nn.FullyConnectedNet([8, 4], torch.tanh)
        for error, message, given in (
            (ValueError, "have shape (..., 8), got (5, 7)", torch.randn(5, 7)),
            (TypeError, "be a tensor, got list", torch.randn(5, 8).tolist()),
            (TypeError, "have the dtype of the weights, float32, got float64", torch.randn(5, 8).double()),
            (TypeError, "have the dtype of the weights, float32, got int64", torch.ones(5, 8).long()),
        ):
            with raises(error, f"FullyConnectedNet: input must {message}", net, given):
                net(given)
        with torch.autocast("cpu", torch.bfloat16):
            assert net(torch.randn(5, 8).bfloat16()).dtype == torch.bfloat16


class TestValues:
    """What is not an error: values propagate."""

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_not_finite_positions_stay_in_their_row(self, bad):
        x = torch.randn(6, 3, requires_grad=True)
        with torch.no_grad():
            x[2, 1] = bad
        y = o3.spherical_harmonics("0e+1o+2e", x, normalize=True)
        assert y[2, 1:].isnan().any() and y[[0, 1, 3, 4, 5]].isfinite().all()
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient[[0, 1, 3, 4, 5]].isfinite().all()

    @pytest.mark.parametrize("normalize", [True, False])
    def test_zero_vectors_have_finite_values_and_gradients(self, normalize):
        x = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        y = o3.spherical_harmonics([0, 1, 2, 3], x, normalize, "component")
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
        assert y[0].tolist() == [1.0] + [0.0] * 15
        assert first.isfinite().all() and second.isfinite().all()

    def test_not_finite_features_stay_with_their_receivers(self):
        layer, graph = nn.TensorProductConv(*PRODUCT), TestConvolution.graph
        x, y, weight = torch.randn(3, 16), torch.randn(5, 4), torch.randn(5, 8)
        y[3] = float("nan")  # the edge from 2 to 0
        out = layer(x, y, weight, graph)
        assert out[0].isnan().all() and out[1:].isfinite().all()


@pytest.mark.parametrize(
    "noun", ["tensor_product", "convolution", "edge_product", "radial_convolution", "spherical_harmonics"]
)
def test_operators_refuse_tensors_of_several_devices(noun):
    """Torch runs the fake kernel if any operand is "meta": it would give memory that nobody wrote."""
    operator = getattr(torch.ops.clebsch, noun)
    x, y, weight = torch.ones(2, 1), torch.ones(2, 1), torch.ones(1)
    plan = "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvu w 1.0"
    order = Graph(torch.tensor([0, 1]), torch.tensor([1, 0]), 2).order
    calls = {
        "tensor_product": [(x, y.to("meta"), weight, plan), (x, y, weight.to("meta"), plan)],
        "convolution": [(x, y, weight.to("meta"), order, plan), (x, y, weight, order.to("meta"), plan)],
        "edge_product": [(x, y, weight.to("meta"), order, plan), (x, y, weight, order.to("meta"), plan)],
        "radial_convolution": [
            (x, y, y.to("meta"), weight[None], order, plan),
            (x, y, y, weight[None].to("meta"), order, plan),
        ],
        "spherical_harmonics": [],
    }
    for arguments in calls[noun]:
        with pytest.raises(ValueError, match=rf"{noun}: \w+ must be on the device of x, cpu, got meta"):
            operator(*arguments)
    if noun == "spherical_harmonics":
        with pytest.raises(ValueError, match="points must be on the device of grad, cpu, got meta"):
            torch.ops.clebsch.spherical_harmonics_backward(
                y, torch.ones(2, 3).to("meta"), [0], True, "component"
            )


LAYERS = {
    "TensorProduct": (lambda: product(), (16, 4, 8), ("x", "y", "weight")),
    "FullTensorProduct": (lambda: o3.FullTensorProduct("4x0e", "0e"), (4, 1), ("x", "y")),
    "FullyConnectedTensorProduct": (  # whose y may be one-hot
        lambda: o3.FullyConnectedTensorProduct("4x0e", "5x0e", "3x0e"),
        (4, 5),
        ("x", "y"),
    ),
    "Linear": (
        lambda: o3.Linear("4x0e+2x1o", "3x0e", shared_weights=False),
        (10, 12),
        ("features", "weight"),
    ),
    "Norm": (lambda: o3.Norm("4x1o"), (12,), ("features",)),
    "ReducedTensorProducts": (
        lambda: o3.ReducedTensorProducts("ij=ji", i="1o"),
        (3, 3),
        ("the input of index 'i'", "the input of index 'j'"),
    ),
    "SphericalHarmonics": (lambda: o3.SphericalHarmonics(1, True), (3,), ("x",)),
    "Gate": (lambda: nn.Gate("", [], "4x0e", [torch.tanh], "4x1o"), (16,), ("features",)),
    "Activation": (lambda: nn.Activation("4x0e", [torch.tanh]), (4,), ("features",)),
    "NormActivation": (lambda: nn.NormActivation("4x0e", torch.tanh), (4,), ("features",)),
    "BatchNorm": (lambda: nn.BatchNorm("4x0e"), (4,), ("input",)),
    "Dropout": (lambda: nn.Dropout("4x0e", 0.5), (4,), ("x",)),
    "Extract": (lambda: nn.Extract("4x0e", ["4x0e"], [(0,)]), (4,), ("x",)),
    "ExtractIr": (lambda: nn.ExtractIr("4x0e", "0e"), (4,), ("x",)),
    "FullyConnectedNet": (lambda: nn.FullyConnectedNet([4, 3]), (4,), ("input",)),
}
NOT_DENSE = {
    "sparse_coo": Tensor.to_sparse,
    "sparse_csr": Tensor.to_sparse_csr,
    "_mkldnn": Tensor.to_mkldnn,
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*nested.*:UserWarning")
@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("name", LAYERS)
def test_operands_that_are_not_dense(name, kind):
    make, widths, labels = LAYERS[name]
    layer = make()
    for i, label in enumerate(labels):
        given = [torch.randn(5, width) for width in widths]
        given[i] = NOT_DENSE[kind](given[i])
        with raises(TypeError, f"{name}: {label} must be a dense tensor, got {kind}"):
            layer(*given)


def test_features_on_another_device_than_the_weights():
    features = torch.ones(3, 2, device="meta")
    for biases in (False, True):
        with raises(ValueError, "Linear: weight must be on the device of features, meta, got cpu"):
            o3.Linear("2x0e", "2x0e", biases=biases)(features)
    for layer in (nn.BatchNorm("2x0e"), nn.BatchNorm("2x0e", affine=False)):
        with raises(ValueError, "BatchNorm: input must be on the device of the module, cpu, got meta"):
            layer(features)


PAIRS = "Linear: instructions must be pairs (i_in, i_out) of integers, got "
OF_BIASES = "Linear: biases must be a bool or one for each block of irreps_out, got "


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"f_in": -1, "f_out": 2}, ValueError, "Linear: f_in must be an integer >= 1, got -1"),
        ({"f_in": 0, "f_out": 2}, ValueError, "Linear: f_in must be an integer >= 1, got 0"),
        ({"f_in": 2, "f_out": "a"}, ValueError, "Linear: f_out must be an integer >= 1, got 'a'"),
        ({"instructions": [1, 0]}, ValueError, f"{PAIRS}[1, 0]"),
        ({"instructions": [(0.5, 0)]}, ValueError, f"{PAIRS}[(0.5, 0)]"),
        ({"instructions": [(0, 0, 1)]}, ValueError, f"{PAIRS}[(0, 0, 1)]"),
        ({"biases": 3}, TypeError, f"{OF_BIASES}3"),
        ({"biases": "x"}, TypeError, f"{OF_BIASES}'x'"),
    ],
)
def test_arguments_of_linear(options, error, message):
    with raises(error, message):
        o3.Linear("2x0e+1o", "2x0e", **options)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: o3.TensorProduct("2x0e", "0e", "2x0e", None),
            "instructions must be an iterable of tuples, got None",
        ),
        (
            lambda: nn.Activation("2x0e", "tanh"),
            "Activation: acts must be a list of one function or None per block, got 'tanh'",
        ),
        (
            lambda: nn.Activation("2x0e", torch.tanh),
            f"Activation: acts must be a list of one function or None per block, got {torch.tanh!r}",
        ),
        (lambda: nn.Activation("2x0e", [3]), "Activation: acts[0] must be a function, got 3"),
        (
            lambda: nn.Gate("2x0e", ["tanh"], "", [], ""),
            "Gate: act_scalars[0] must be a function, got 'tanh'",
        ),
        (
            lambda: nn.Gate("", [], "2x0e", 3, "2x1o"),
            "Gate: act_gates must be a list of one function or None per block, got 3",
        ),
        (
            lambda: nn.NormActivation("2x0e", "x"),
            "NormActivation: scalar_nonlinearity must be a function, got 'x'",
        ),
        (lambda: nn.FullyConnectedNet([2, 3], "x"), "FullyConnectedNet: act must be a function, got 'x'"),
        (lambda: nn.FullyConnectedNet(3), "FullyConnectedNet: hs must be a list of sizes, got 3"),
        (lambda: nn.BatchNorm("2x0e", eps="a"), "BatchNorm: eps must be a number, got 'a'"),
        (lambda: nn.BatchNorm("2x0e", momentum=None), "BatchNorm: momentum must be a number, got None"),
        (
            lambda: nn.Extract("2x0e", ["2x0e"], None),
            "Extract: instructions must be a list of one tuple per output, got None",
        ),
        (lambda: nn.ExtractIr("2x0e", "0e")([1.0]), "ExtractIr: x must be a tensor, got list"),
    ],
)
def test_arguments_of_layers(make, message):
    with raises(TypeError, message):
        make()
