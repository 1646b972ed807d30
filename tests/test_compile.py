"""torch.compile, torch.export, opcheck: what sees operators through their fake kernels."""

import pytest
import torch

from clebsch import Graph, nn, o3, ops
from clebsch.algebra.plan import ProductPlan
from linear_calls import LinearProblem, mixing_plan, with_elements
from product_calls import poisoned_memory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CHANNELWISE = (
    "4x0e+4x1o",
    "1x0e+1x1o",
    "4x0e+4x1o+4x1o",
    [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 2, "uvu", False)],
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def random_graph(num_nodes, num_edges):
    return Graph(torch.randint(num_nodes, (num_edges,)), torch.randint(num_nodes, (num_edges,)), num_nodes)


class Conv(torch.nn.Module):
    """The convolution with its graph made inside: how an exported model takes edges."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TensorProductConv(*CHANNELWISE)

    def forward(self, x, y, weight, senders, receivers):
        return self.layer(x, y, weight, Graph(senders, receivers, x.shape[0]))


class RadialConv(torch.nn.Module):
    """The same with weights that are made of hidden features."""

    def __init__(self):
        super().__init__()
        self.plan = str(o3.TensorProduct(*CHANNELWISE).plan)
        self.matrix = torch.nn.Parameter(torch.randn(5, 12))

    def forward(self, x, y, hidden, senders, receivers):
        graph = Graph(senders, receivers, x.shape[0])
        return ops.radial_convolution(x, y, hidden, self.matrix, graph, self.plan)


def radial_operands(num_nodes, num_edges):
    x, y, _, *ends = conv_operands(num_nodes, num_edges)
    return x, y, torch.randn(num_edges, 5), *ends


def conv_operands(num_nodes, num_edges):
    graph = random_graph(num_nodes, num_edges)
    return (
        torch.randn(num_nodes, 16),
        torch.randn(num_edges, 4),
        torch.randn(num_edges, 12),
        graph.senders,
        graph.receivers,
    )


def rows_of(*widths):
    return lambda rows: tuple(torch.randn(rows, width) for width in widths)


# name: (module, operands for a number of rows)
LAYERS = {
    "TensorProduct": (lambda: o3.TensorProduct(*CHANNELWISE), rows_of(16, 4)),
    "TensorProduct, weights per row": (
        lambda: o3.TensorProduct(*CHANNELWISE, shared_weights=False),
        rows_of(16, 4, 12),
    ),
    "FullyConnectedTensorProduct": (
        lambda: o3.FullyConnectedTensorProduct("4x0e+4x1o", "1x0e+1x1o", "4x0e+4x1o"),
        rows_of(16, 4),
    ),
    "TensorProductConv": (Conv, lambda rows: conv_operands(rows, 3 * rows)),
    "RadialConv": (RadialConv, lambda rows: radial_operands(rows, 3 * rows)),
    "Linear": (lambda: o3.Linear("4x0e+4x1o", "3x0e+2x1o", biases=True), rows_of(16)),
    "Linear, without scalars": (lambda: o3.Linear("4x1o+3x1o+2x2e", "5x1o+1x2e+2x3o"), rows_of(31)),
    "Linear, weights per row": (
        lambda: o3.Linear("4x0e+4x1o", "3x0e+2x1o", shared_weights=False),
        rows_of(16, 20),
    ),
    "SphericalHarmonics": (lambda: o3.SphericalHarmonics([0, 1, 2], True, "component"), rows_of(3)),
    "Gate": (lambda: nn.Gate("4x0e", [torch.tanh], "3x0e", [torch.sigmoid], "2x1o+1x2e"), rows_of(18)),
    "FullyConnectedNet": (lambda: nn.FullyConnectedNet([8, 16, 4], torch.tanh), rows_of(8)),
    "NormActivation": (lambda: nn.NormActivation("4x0e+2x1o", torch.sigmoid, bias=True), rows_of(10)),
    "BatchNorm": (lambda: nn.BatchNorm("4x0e+2x1o+3x0e"), rows_of(13)),
    "BatchNorm, evaluation": (lambda: nn.BatchNorm("4x0e+2x1o+3x0e").eval(), rows_of(13)),
    "Extract": (lambda: nn.Extract("4x0e+2x1o", ["2x1o+4x0e"], [(1, 0)], squeeze_out=True), rows_of(10)),
    "Activation": (lambda: nn.Activation("4x0e+2x1o", [torch.tanh, None]), rows_of(10)),
}


def outputs_and_gradients(function, operands, parameters):
    given = [t.detach().requires_grad_() if t.is_floating_point() else t for t in operands]
    wanted = [t for t in given if t.requires_grad] + parameters
    out = function(*given)
    return out, torch.autograd.grad(out.sin().sum(), wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_compile_forward_and_backward(name):
    make, operands_for = LAYERS[name]
    module = make()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    parameters = list(module.parameters())
    for rows in (6, 9):
        operands = operands_for(rows)
        eager = outputs_and_gradients(module, operands, parameters)
        traced = outputs_and_gradients(compiled, operands, parameters)
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_dropout():
    module = nn.Dropout("4x0e+2x1o", 0.5)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 9):
        results = []
        for function in (module, compiled):
            torch.manual_seed(1)
            results.append(outputs_and_gradients(function, (torch.ones(rows, 10),), []))
        torch.testing.assert_close(*results)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compiled_batch_norm_keeps_running_means():
    eager, traced = nn.BatchNorm("4x0e+2x1o"), nn.BatchNorm("4x0e+2x1o")
    compiled = torch.compile(traced, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 9):
        x = torch.randn(rows, 10)
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(traced.state_dict(), eager.state_dict())


@pytest.mark.slow  # whichever is first compiles inductor's own headers
@pytest.mark.parametrize("name", ["SphericalHarmonics", "TensorProduct", "TensorProductConv", "Linear"])
def test_compile_with_inductor(name):
    """With code of its own before and after the operator, and in its backward."""
    from torch._inductor.utils import fresh_cache

    make, operands_for = LAYERS[name]
    module = make()

    def function(first, *others):
        return module(first.tanh(), *others).sin()

    parameters = list(module.parameters())
    with fresh_cache():  # what an older version left behind may hold other shapes
        compiled = torch.compile(function, fullgraph=True, dynamic=True)
        for rows in (6, 9):
            operands = operands_for(rows)
            eager = outputs_and_gradients(function, operands, parameters)
            traced = outputs_and_gradients(compiled, operands, parameters)
            torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_with_a_graph_from_outside():
    layer = nn.TensorProductConv(*CHANNELWISE)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_nodes, num_edges in ((6, 20), (7, 30), (8, 31), (30, 8)):
        *operands, senders, receivers = conv_operands(num_nodes, num_edges)
        graph = Graph(senders, receivers, num_nodes)
        eager, traced = (
            outputs_and_gradients(lambda *given: function(*given, graph), operands, [])  # noqa: B023
            for function in (layer, compiled)
        )
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_functions():
    plan = o3.TensorProduct(*CHANNELWISE).plan
    # Before torch 2.11 no object of a frozen dataclass is a constant to the tracer: there, the string is.
    either = plan if torch.__version__ >= torch.torch_version.TorchVersion("2.11") else str(plan)
    mixing = str(ProductPlan.from_instructions("28x0e", "1x0e", "3x0e", [(0, 0, 0, "uvw", True)]))

    def function(x, y, weight, matrix, bias):
        rows = ops.tensor_product(x, y, weight, either) + ops.tensor_product(x, y, weight, str(plan))
        mixed = ops.linear(rows, matrix, bias[:0], mixing) + ops.linear(rows, matrix, bias, mixing, [0])
        return torch.cat((rows, mixed), dim=1)

    operands = (*rows_of(16, 4, 12)(5), torch.randn(84), torch.randn(3))
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), function(*operands))


def test_compile_with_an_index():
    plan = str(with_elements(mixing_plan("4x0e+3x1o", "2x0e+3x1o"), 3))

    def function(x, weight, index):
        return ops.linear(x, weight, x.new_empty(0), plan, index=index)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 8):
        operands = [torch.randn(rows, 13, requires_grad=True), torch.randn(51, requires_grad=True)]
        index = torch.arange(rows) % 3
        eager, traced = (
            torch.autograd.grad(f(*operands, index).square().sum(), operands) for f in (function, compiled)
        )
        torch.testing.assert_close(traced, eager)


def test_compiled_layers_call_the_kernels():
    """Forward and backward of the layer as one operator each, nothing gathered around it."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def note(module, inputs):
        seen.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return make_boxed_func(module.forward)

    module = o3.Linear("4x0e+4x1o", "3x0e+2x1o")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=note))
    x = torch.randn(6, 16, requires_grad=True)
    compiled(x).sum().backward()
    forward, backward = ([name for name in names if "clebsch" in name] for names in seen)
    assert forward == ["clebsch.linear.default"]
    assert sorted(backward) == ["clebsch.linear_grad_weight.default", "clebsch.linear_grad_x.default"]
    assert not [name for name in seen[0] if "cat" in name or "mm" in name or "clone" in name]

    seen.clear()
    gate = nn.Gate("4x0e", [torch.tanh], "3x0e", [torch.sigmoid], "2x1o+1x2e")
    compiled = torch.compile(gate, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=note))
    compiled(torch.randn(6, 18, requires_grad=True)).sum().backward()
    forward, backward = ([name for name in names if "clebsch" in name] for names in seen)
    assert (forward, backward) == (["clebsch.gate.default"], ["clebsch.gate_backward.default"])


def test_compile_forces_of_a_training_step():
    """Second derivatives under compile: make_fx over a function that differentiates inside."""
    from torch.fx.experimental.proxy_tensor import make_fx

    module = Conv()

    def loss_gradient(x, y, weight, senders, receivers):
        energy = module(x, y, weight, senders, receivers).sin().sum()
        (force,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.autograd.grad((force**2).sum(), weight)[0]

    def operands(num_nodes, num_edges):
        x, y, weight, senders, receivers = conv_operands(num_nodes, num_edges)
        return x, y.requires_grad_(), weight.requires_grad_(), senders, receivers

    traced = make_fx(loss_gradient, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*operands(6, 20))
    names = [str(node.target) for node in traced.graph.nodes]
    assert any("convolution_double_backward" in name for name in names)
    given = operands(8, 31)
    torch.testing.assert_close(traced(*given), loss_gradient(*given), rtol=1e-5, atol=1e-5)


def dynamic_shapes(name):
    rows = torch.export.Dim("rows", min=2)
    if name not in ("TensorProductConv", "RadialConv"):
        return rows
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    third = "hidden" if name == "RadialConv" else "weight"
    return {"x": {0: nodes}} | {key: {0: edges} for key in ("y", third, "senders", "receivers")}


@pytest.mark.parametrize("name", LAYERS)
def test_export_with_dynamic_sizes(name):
    make, operands_for = LAYERS[name]
    module, operands = make(), operands_for(6)
    shapes = dynamic_shapes(name)
    if not isinstance(shapes, dict):
        shapes = tuple({0: shapes} for _ in operands)
    exported = torch.export.export(module, operands, dynamic_shapes=shapes)
    assert not name.startswith(("TensorProduct", "Radial", "Linear", "Gate")) or "clebsch" in str(
        exported.graph
    )
    for rows in (6, 11):
        operands = operands_for(rows)
        torch.testing.assert_close(exported.module()(*operands), module(*operands), rtol=1e-5, atol=1e-5)


def test_exported_convolution_has_independent_nodes_and_edges_and_checks_them():
    exported = torch.export.export(
        Conv(), conv_operands(6, 20), dynamic_shapes=dynamic_shapes("TensorProductConv")
    )
    module = exported.module()
    for num_nodes, num_edges in ((6, 21), (9, 5), (30, 2)):
        operands = conv_operands(num_nodes, num_edges)
        x, y, weight, senders, receivers = operands
        product = o3.TensorProduct(*CHANNELWISE, shared_weights=False)
        expected = torch.zeros(num_nodes, 28).index_add(0, receivers, product(x[senders], y, weight))
        torch.testing.assert_close(module(*operands), expected, rtol=1e-5, atol=1e-5)
    x, y, weight, senders, receivers = conv_operands(6, 20)
    receivers[3] = 6
    with pytest.raises(IndexError, match=r"graph_order: (senders and )?receivers must lie in"):
        module(x, y, weight, senders, receivers)


MIXING = mixing_plan("4x0e+3x1o", "2x0e+3x1o+5x0e")


NOUNS = [
    "tensor_product",
    "convolution",
    *(
        pytest.param(noun, marks=pytest.mark.not_interpreted("Triton's kernels have no such product"))
        for noun in ("edge_product", "radial_convolution")
    ),
]


class TestOpcheck:
    plan = str(o3.TensorProduct(*CHANNELWISE).plan)
    graph = random_graph(6, 9)

    def operands(self, noun, shared):
        rows = {"tensor_product": (9, 9), "edge_product": (9, 6)}.get(noun, (6, 9))
        weights = [(9, 5), (5, 12)] if noun == "radial_convolution" else [(12,) if shared else (9, 12)]
        shapes = [(rows[0], 16), (rows[1], 4), *weights]
        fixed = (self.plan,) if noun == "tensor_product" else (self.graph.order, self.plan)
        return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes], fixed

    def cotangent(self, operands):
        return torch.randn(operands[0].shape[0], 28, dtype=torch.float64, requires_grad=True)

    def test_graph_order(self):
        ends = self.graph.senders, self.graph.receivers
        with poisoned_memory():  # kernels for GPUs leave a part as they find it
            torch.library.opcheck(torch.ops.clebsch.graph_order.default, (*ends, 6))

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("noun", NOUNS)
    def test_forward(self, noun, shared):
        operands, fixed = self.operands(noun, shared)
        torch.library.opcheck(getattr(torch.ops.clebsch, noun).default, (*operands, *fixed))

    @pytest.mark.parametrize("biased, per_row", [((), False), ((2, 0), False), ((2, 0), True)])
    def test_linear(self, biased, per_row):
        problem = LinearProblem.random(MIXING, 9, biased, bias_per_row=per_row)
        operands = [operand.requires_grad_() for operand in (problem.x, problem.weight, problem.bias)]
        torch.library.opcheck(torch.ops.clebsch.linear.default, (*operands, str(MIXING), biased))

    @pytest.mark.parametrize("name", ["linear_grad_x", "linear_grad_weight"])
    def test_gradients_of_linear(self, name):
        problem = LinearProblem.random(MIXING, 9)
        operands = (problem.grad, problem.weight) if name == "linear_grad_x" else (problem.x, problem.grad)
        operands = [operand.requires_grad_() for operand in operands]
        torch.library.opcheck(getattr(torch.ops.clebsch, name).default, (*operands, str(MIXING)))

    def test_linear_with_an_index(self):
        plan = with_elements(MIXING, 3)
        problem = LinearProblem.random(plan, 9, (2, 0), present=2)
        operands = [operand.requires_grad_() for operand in problem.operands]
        x, weight, bias, grad = operands
        call, fixed = torch.ops.clebsch, (str(plan), problem.index)
        torch.library.opcheck(call.linear.default, (x, weight, bias, str(plan), (2, 0), problem.index))
        torch.library.opcheck(call.linear_grad_x.default, (grad, weight, *fixed))
        torch.library.opcheck(call.linear_grad_weight.default, (x, grad, *fixed))

    def test_one_hot_index(self):
        torch.library.opcheck(torch.ops.clebsch.one_hot_index.default, (torch.eye(4),))

    @pytest.mark.parametrize("needs", [15, 2])
    @pytest.mark.parametrize("noun", NOUNS)
    def test_backward(self, noun, needs):
        operands, fixed = self.operands(noun, shared=False)
        operator = getattr(torch.ops.clebsch, f"{noun}_backward").default
        torch.library.opcheck(operator, (self.cotangent(operands), *operands, *fixed, needs))

    @pytest.mark.parametrize("given, needs", [((True,) * 4, 31), ((True, False, False, True), 9)])
    @pytest.mark.parametrize("noun", NOUNS)
    def test_double_backward(self, noun, given, needs):
        operands, fixed = self.operands(noun, shared=False)
        tangents = [
            torch.randn_like(operand, requires_grad=True) if is_given else None
            for operand, is_given in zip(operands, given, strict=False)
        ]
        operator = getattr(torch.ops.clebsch, f"{noun}_double_backward").default
        torch.library.opcheck(operator, (*tangents, self.cotangent(operands), *operands, *fixed, needs))
