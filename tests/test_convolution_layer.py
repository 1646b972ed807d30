"""nn.TensorProductConv against o3.TensorProduct on gathered rows and index_add, ours and e3nn's."""

import copy
import pickle

import pytest
import torch

from clebsch import Graph, nn, o3, ops

e3nn_o3 = pytest.importorskip("e3nn.o3")

CHANNELWISE = (
    "8x0e+8x1o",
    "1x0e+1x1o+1x2e",
    "8x0e+8x0e+8x1o+8x1o+8x1o+8x2e",
    [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", True),
        (0, 1, 2, "uvu", True),
        (1, 0, 3, "uvu", True),
        (1, 2, 4, "uvu", True),
        (1, 1, 5, "uvu", True),
    ],
)
MIXED = (
    "2x0e+3x1o",
    "1x0e+3x1o",
    "3x1o+2x0e+9x1e",
    [
        (1, 0, 0, "uvu", True),
        (0, 1, 0, "uvv", True),
        (1, 1, 1, "uvw", True),
        (1, 1, 1, "uuw", True),
        (1, 1, 2, "uvuv", False),
    ],
)
UNWEIGHTED = ("4x0e+4x1o", "1x0e+1x1o", "4x1o+4x0e", [(0, 1, 0, "uvu", False), (1, 1, 1, "uvu", False)])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(((a - b).norm() / b.norm().clamp_min(1e-300)).detach()) if b.numel() else 0.0


def random_graph(num_nodes: int, num_edges: int) -> Graph:
    return Graph(torch.randint(num_nodes, (num_edges,)), torch.randint(num_nodes, (num_edges,)), num_nodes)


def operands(layer, graph, shared):
    rows = () if shared else (graph.num_edges,)
    return (
        torch.randn(graph.num_nodes, layer.irreps_in1.dim, requires_grad=True),
        torch.randn(graph.num_edges, layer.irreps_in2.dim, requires_grad=True),
        torch.randn(*rows, layer.weight_numel, requires_grad=True),
    )


def by_rows(product, x, y, weight, graph):
    rows = product(x[graph.senders], y, weight)
    return rows.new_zeros(graph.num_nodes, rows.shape[1]).index_add(0, graph.receivers, rows)


@pytest.mark.parametrize("num_edges", [0, 1, 7, 60])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("arguments", [CHANNELWISE, MIXED, UNWEIGHTED], ids=["uvu", "mixed", "unweighted"])
def test_equals_products_of_rows(arguments, shared, num_edges):
    torch.set_default_dtype(torch.float64)
    layer = nn.TensorProductConv(*arguments, shared_weights=shared, internal_weights=False)
    graph = random_graph(9, num_edges)
    given = operands(layer, graph, shared)
    out = layer(*given, graph)
    cotangent = torch.randn_like(out)
    gradients = torch.autograd.grad(out, given, cotangent)
    for package in (o3, e3nn_o3):
        product = package.TensorProduct(*arguments, shared_weights=shared, internal_weights=False)
        if package is e3nn_o3 and num_edges == 0:
            continue  # e3nn's reshape(-1, ...) of no rows is ambiguous
        expected = by_rows(product, *given, graph)
        assert relative(out, expected) < 1e-12
        theirs = torch.autograd.grad(expected, given, cotangent, allow_unused=True)
        for mine, its in zip(gradients, theirs, strict=True):
            assert relative(mine, torch.zeros_like(mine) if its is None else its) < 1e-12


def test_internal_weights_and_state_dict():
    torch.set_default_dtype(torch.float64)
    product = e3nn_o3.TensorProduct(*MIXED)
    layer = nn.TensorProductConv(*MIXED, shared_weights=True)
    layer.load_state_dict(product.state_dict())
    graph = random_graph(5, 20)
    x, y, _ = operands(layer, graph, shared=True)
    assert relative(layer(x, y, None, graph), by_rows(product, x, y, None, graph)) < 1e-12
    assert layer.internal_weights and set(layer.state_dict()) == set(product.state_dict())


def test_defaults_are_weights_per_edge():
    layer = nn.TensorProductConv(*CHANNELWISE)
    assert not layer.shared_weights and not layer.internal_weights
    assert layer.weight_numel == 48 and layer.weight.shape == (0,)


def test_list_of_weights():
    layer = nn.TensorProductConv(*MIXED)
    graph = random_graph(5, 20)
    x, y, weight = operands(layer, graph, shared=False)
    assert torch.equal(layer(x, y, list(layer.weight_views(weight)), graph), layer(x, y, weight, graph))


def test_one_graph_serves_many_layers():
    graph = random_graph(5, 20)
    layers = [nn.TensorProductConv(*CHANNELWISE), nn.TensorProductConv(*MIXED)]
    for layer in layers:
        layer(*operands(layer, graph, shared=False), graph)
    order = graph.order
    for layer in layers:
        layer(*operands(layer, graph, shared=False), graph)
    assert graph.order is order


def test_function_with_a_plan_or_its_string():
    layer = nn.TensorProductConv(*CHANNELWISE)
    graph = random_graph(5, 20)
    given = operands(layer, graph, shared=False)
    expected = layer(*given, graph)
    assert torch.equal(ops.convolution(*given, graph, layer.plan), expected)
    assert torch.equal(ops.convolution(*given, graph, str(layer.plan)), expected)


def test_copies_compute_the_same():
    layer = nn.TensorProductConv(*MIXED, shared_weights=True)
    graph = random_graph(5, 20)
    x, y, _ = operands(layer, graph, shared=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, y, None, graph), layer(x, y, None, graph))


def test_is_equivariant():
    torch.set_default_dtype(torch.float64)
    layer = nn.TensorProductConv(*CHANNELWISE)
    graph = random_graph(9, 60)
    x, y, weight = operands(layer, graph, shared=False)
    rotation = -o3.rand_matrix()
    in1, in2, out = (
        irreps.D_from_matrix(rotation) for irreps in (layer.irreps_in1, layer.irreps_in2, layer.irreps_out)
    )
    turned = layer(x @ in1.T, y @ in2.T, weight, graph)
    assert relative(turned, layer(x, y, weight, graph) @ out.T) < 1e-12
