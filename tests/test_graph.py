"""clebsch.Graph: what it accepts, what it keeps. What it refuses is in test_errors.py."""

import copy
import pickle

import pytest
import torch

from clebsch import Graph
from product_calls import poisoned_memory

GRAPHS = {
    "plain": ([0, 1, 2, 2], [1, 0, 0, 1], 3),
    "unsymmetric, self loops, duplicates": ([0, 0, 0, 3, 3], [1, 1, 0, 3, 1], 4),
    "isolated nodes": ([5, 1], [1, 5], 9),
    "no edges": ([], [], 4),
    "nothing": ([], [], 0),
}


@pytest.fixture(autouse=True)
def filled_memory():
    """The same orders are the same bits, those too that kernels for GPUs leave as they find them."""
    with poisoned_memory():
        yield


def graph(name, dtype=torch.int64):
    senders, receivers, num_nodes = GRAPHS[name]
    return Graph(torch.tensor(senders, dtype=dtype), torch.tensor(receivers, dtype=dtype), num_nodes)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", GRAPHS)
def test_attributes_and_order(name, dtype):
    g = graph(name, dtype)
    num_edges = len(GRAPHS[name][0])
    assert (g.num_nodes, g.num_edges) == (GRAPHS[name][2], num_edges)
    assert g.senders.tolist() == GRAPHS[name][0] and g.receivers.tolist() == GRAPHS[name][1]
    assert g._order is None  # not before it is asked for
    assert g.order.dtype == torch.int64 and g.order.shape == (6 * num_edges + 3 * g.num_nodes + 5,)
    assert g.order is g.order
    assert torch.equal(g.order, graph(name).order)


def test_slices_of_a_matrix():
    edge_index = torch.tensor([[0, 1, 2], [2, 2, 0]])
    assert Graph.from_edge_index(edge_index, 3, sender_row=0).senders.tolist() == [0, 1, 2]
    turned = Graph.from_edge_index(edge_index, 3, sender_row=1)
    assert (turned.senders.tolist(), turned.receivers.tolist()) == ([2, 2, 0], [0, 1, 2])
    columns = torch.tensor([[0, 2], [1, 2], [2, 0]]).T  # rows are not contiguous
    assert torch.equal(Graph.from_edge_index(columns, 3, sender_row=1).order, turned.order)


def test_copies():
    g = graph("plain")
    order = g.order
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g)), g.to("cpu")):
        assert other.num_nodes == 3 and torch.equal(other.order, order)


def test_repr():
    assert repr(graph("isolated nodes")) == "Graph(num_nodes=9, num_edges=2, device=cpu)"
