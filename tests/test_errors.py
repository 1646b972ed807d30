"""Bad input: one clear sentence each, word for word, of the right type, and nothing is changed by it."""

import re

import pytest
import torch

from clebsch import Graph, nn, o3, ops

TWO_PATHS = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True)]
PRODUCT = ("4x0e+4x1o", "1x0e+1x1o", "4x0e", TWO_PATHS)


def product(**options):
    return o3.TensorProduct(*PRODUCT, shared_weights=False, **options)


def raises(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


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
        with raises(ValueError, f"tensor_product: {message}"):
            ops.tensor_product(*with_operand(i, torch.randn(shape)), self.plan)

    @pytest.mark.parametrize("i, name", [(0, "x"), (1, "y"), (2, "weight")])
    def test_types(self, i, name):
        with raises(TypeError, f"tensor_product: {name} must be a tensor, got list"):
            ops.tensor_product(*with_operand(i, [1.0]), self.plan)
        wrong = operands()[i].long()
        expected = "must be float32 or float64" if i == 0 else "must have the dtype of x, float32"
        with raises(TypeError, f"tensor_product: {name} {expected}, got int64"):
            ops.tensor_product(*with_operand(i, wrong), self.plan)
        half = [operand.half() for operand in operands()]
        with raises(TypeError, "tensor_product: x must be float32 or float64, got float16"):
            ops.tensor_product(*half, self.plan)

    @pytest.mark.parametrize("i, name", [(1, "y"), (2, "weight")])
    def test_mixed_dtypes_and_devices(self, i, name):
        with raises(TypeError, f"tensor_product: {name} must have the dtype of x, float32, got float64"):
            ops.tensor_product(*with_operand(i, operands()[i].double()), self.plan)
        with raises(ValueError, f"tensor_product: {name} must be on the device of x, cpu, got meta"):
            ops.tensor_product(*with_operand(i, operands()[i].to("meta")), self.plan)

    def test_plan(self):
        with pytest.raises(ValueError, match=r"ProductPlan\.parse: expected"):
            ops.tensor_product(*operands(), "nonsense")
        with raises(TypeError, "ProductPlan.parse: expected a str, got NoneType"):
            ops.tensor_product(*operands(), None)


class TestTensorProductLayer:
    def test_leading_dimensions(self):
        module = product()
        x, y, weight = operands()
        with raises(ValueError, "TensorProduct: x must have shape (..., 16), got (1, 5, 15)"):
            module(x[None, :, :15], y, weight)
        with raises(ValueError, "TensorProduct: y must have shape (..., 4), got (1, 5, 3)"):
            module(x, y[None, :, :3], weight)
        with raises(
            ValueError,
            "TensorProduct: the leading dimensions of x, y and weight must broadcast, got (5,), (4,), (5,)",
        ):
            module(x, y[:4], weight)
        with raises(TypeError, "TensorProduct: x must be a tensor, got list"):
            module([x], y, weight)

    def test_weights(self):
        x, y, weight = operands()
        with raises(
            ValueError,
            "TensorProduct: weight must be given: the module has 8 weights and internal_weights=False",
        ):
            product()(x, y)
        with raises(
            ValueError,
            "TensorProduct: weight must have shape (..., 8) with at least one leading dimension, got (8,)",
        ):
            product()(x, y, weight[0])
        with raises(
            ValueError,
            "TensorProduct: weight must have shape (..., 8) with at least one leading dimension, got (5, 7)",
        ):
            product()(x, y, weight[:, :7])
        shared = o3.TensorProduct(*PRODUCT)
        with raises(
            ValueError, "TensorProduct: weight must have shape (8,) where weights are shared, got (5, 8)"
        ):
            shared(x, y, weight)
        with raises(
            ValueError, "TensorProduct: weight must be a list of 2 tensors, one per weighted path, got 1"
        ):
            shared(x, y, [weight[0]])
        with raises(ValueError, "TensorProduct: weight[1] must have shape (..., 4, 1), got (4, 2)"):
            shared(x, y, [torch.randn(4, 1), torch.randn(4, 2)])
        with raises(TypeError, "TensorProduct: weight must be a tensor, got float"):
            shared(x, y, 1.0)

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
        with raises(error, f"Graph: {name} {message}"):
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
        with pytest.raises(TypeError, match="sender_row"):
            Graph.from_edge_index(edge_index, 3)

    @pytest.mark.parametrize("bad", [3, -1, 2**62])
    def test_the_operator_checks_too(self, bad):
        # torch.compile and torch.export skip the check in Python.
        message = f"graph_order: receivers must lie in [0, num_nodes) = [0, 3), got {bad} at edge 1"
        with raises(IndexError, message):
            torch.ops.clebsch.graph_order(self.indices, torch.tensor([0, bad, 1]), 3)


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
        with raises(ValueError, f"convolution: {message}"):
            self.layer(*given, self.graph)

    def test_types(self):
        x, y, weight = self.given()
        with raises(TypeError, "convolution: y must have the dtype of x, float32, got float64"):
            self.layer(x, y.double(), weight, self.graph)
        with raises(TypeError, "convolution: x must be float32 or float64, got int64"):
            self.layer(x.long(), y, weight, self.graph)
        with raises(TypeError, "convolution: graph must be a clebsch.Graph, got Tensor"):
            self.layer(x, y, weight, torch.stack((self.graph.senders, self.graph.receivers)))
        with raises(
            ValueError,
            "TensorProductConv: weight must be given: the module has 8 weights and internal_weights=False",
        ):
            self.layer(x, y, None, self.graph)


class TestLinear:
    def test_features(self):
        module = o3.Linear("4x0e+4x1o", "2x0e")
        with raises(ValueError, "Linear: features must have shape (..., 16), got (5, 15)"):
            module(torch.randn(5, 15))
        with raises(TypeError, "Linear: features must be a tensor, got list"):
            module([1.0])
        with raises(TypeError, "Linear: features must have the dtype of weight, float32, got float64"):
            module(torch.randn(5, 16, dtype=torch.float64))
        with raises(TypeError, "Linear: features must have the dtype of weight, float32, got int64"):
            module(torch.zeros(5, 16, dtype=torch.int64))
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

    def test_weights(self):
        module = o3.Linear("4x0e", "2x0e", internal_weights=False)
        x = torch.randn(5, 4)
        with raises(
            ValueError,
            "Linear: weight must be given: the module needs 8 numbers per row and internal_weights=False",
        ):
            module(x)
        with raises(ValueError, "Linear: weight must have shape (8,), got (5, 8)"):
            module(x, torch.randn(5, 8))
        with raises(ValueError, "Linear: weight must have shape (..., 8), got (5, 7)"):
            o3.Linear("4x0e", "2x0e", shared_weights=False)(x, torch.randn(5, 7))
        with raises(
            ValueError,
            "Linear: the leading dimensions of features and weight must broadcast, got (5,) and (4,)",
        ):
            o3.Linear("4x0e", "2x0e", shared_weights=False)(x, torch.randn(4, 8))


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
        with raises(ValueError, "SphericalHarmonics: x must have shape (..., 3), got (5, 1, 4)"):
            o3.SphericalHarmonics(2, True)(torch.randn(5, 1, 4))

    def test_gate_and_activation(self):
        with raises(ValueError, "Gate: irreps_scalars must be scalars, got '2x1o'"):
            nn.Gate("2x1o", [None], "", [], "")
        with raises(
            ValueError,
            "Gate: irreps_gates must have one scalar per irrep of irreps_gated, 3 in all, got 2",
        ):
            nn.Gate("4x0e", [None], "2x0e", [torch.sigmoid], "3x1o")
        gate = nn.Gate("4x0e", [None], "2x0e", [torch.sigmoid], "2x1o")
        with raises(ValueError, "Gate: features must have shape (..., 12), got (5, 11)"):
            gate(torch.randn(5, 11))
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

    def test_fully_connected_net(self):
        with raises(ValueError, "FullyConnectedNet: hs must be sizes >= 0, got [8, -1]"):
            nn.FullyConnectedNet([8, -1])
        with raises(ValueError, "FullyConnectedNet: x must have shape (..., 8), got (5, 7)"):
            nn.FullyConnectedNet([8, 4], torch.tanh)(torch.randn(5, 7))


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
