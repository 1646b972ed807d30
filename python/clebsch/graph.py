"""Graph: which node sends to which, and the order in which the kernels walk over its edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from clebsch import backend
from clebsch import ops as ops  # loads the library that has graph_order
from clebsch.ops.dispatch import on_host

__all__ = ["Graph"]


class Graph:
    """A directed graph: edge e carries a message from node senders[e] to node receivers[e].

    Make it once for a list of edges and give it to every layer: what the kernels need, the edges sorted by
    receiver and, for gradients, where the sums of each sender are kept, is made at first use, in O(E), and
    kept; on a GPU at once, on the current stream, which others that use the graph must wait for. Edges may
    come in any order; self loops, duplicate edges, isolated nodes, no edges at all and graphs that are not
    symmetric are all fine. The tensors must not be changed afterwards.

    Args:
        senders, receivers: int64 or int32 tensors of shape (num_edges,), on one device.
        num_nodes: number of nodes; every index lies in [0, num_nodes).

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: another shape, unequal lengths or devices, or a negative num_nodes.
        IndexError: an index out of range. While torch.compile or torch.export traces, the range cannot be
            looked at; the compiled operator then raises IndexError at run time.

    Packages disagree about the rows of a (2, E) edge index; `Graph.from_edge_index` makes you say which is
    which.
    """

    senders: Tensor
    receivers: Tensor
    num_nodes: int

    def __init__(self, senders: Tensor, receivers: Tensor, num_nodes: int) -> None:
        _check_indices("senders", senders)
        _check_indices("receivers", receivers)
        if senders.shape[0] != receivers.shape[0]:
            raise ValueError(
                f"Graph: receivers must have the shape of senders, {tuple(senders.shape)}, "
                f"got {tuple(receivers.shape)}"
            )
        if senders.device != receivers.device:
            raise ValueError(
                f"Graph: receivers must be on the device of senders, {senders.device}, got {receivers.device}"
            )
        if not isinstance(num_nodes, (int, torch.SymInt)) or isinstance(num_nodes, bool):
            raise TypeError(f"Graph: num_nodes must be an int, got {type(num_nodes).__name__}")
        if num_nodes < 0:
            raise ValueError(f"Graph: num_nodes must be >= 0, got {num_nodes}")
        has_numbers = not (
            torch.compiler.is_compiling() or isinstance(senders, FakeTensor) or senders.is_meta
        )
        if has_numbers:
            _check_range("senders", senders, num_nodes)
            _check_range("receivers", receivers, num_nodes)
        self._keep(senders, receivers, num_nodes)
        # Not at first use, which may be on one of several streams, or while a CUDA graph is captured.
        if has_numbers and not on_host(senders) and backend.backend_of("graph_order", senders.device.type):
            self._order = self._make_order()

    def _keep(self, senders: Tensor, receivers: Tensor, num_nodes: int) -> None:
        self.senders = senders
        self.receivers = receivers
        self.num_nodes = num_nodes
        self._order: Tensor | None = None

    @classmethod
    def of_call(cls, senders: Tensor, receivers: Tensor, num_nodes: int) -> Graph:
        """The graph of one call of a model, whose tensors are what they must be.

        On a GPU nothing waits for the range of the indices: kernels stop the program for one outside of it.
        The order is made at first use, on the stream of the call.
        """
        if on_host(senders):
            return cls(senders, receivers, num_nodes)
        graph = cls.__new__(cls)
        graph._keep(senders, receivers, num_nodes)
        return graph

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int, *, sender_row: int) -> Graph:
        """The graph of a (2, E) matrix of node indices whose row `sender_row`, 0 or 1, holds the senders.

        0 for PyTorch Geometric and MACE; 1 for NequIP, Allegro and SevenNet. TypeError or ValueError if
        edge_index is no tensor or has another shape, or for another sender_row; IndexError as `Graph`.
        """
        if not isinstance(edge_index, Tensor):
            raise TypeError(f"Graph: edge_index must be a tensor, got {type(edge_index).__name__}")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(
                f"Graph: edge_index must have shape (2, num_edges), got {tuple(edge_index.shape)}"
            )
        if sender_row not in (0, 1):
            raise ValueError(f"Graph: sender_row must be 0 or 1, got {sender_row!r}")
        return cls(edge_index[sender_row], edge_index[1 - sender_row], num_nodes)

    @property
    def num_edges(self) -> int:
        """Number of edges, the length of senders and receivers."""
        return self.senders.shape[0]

    @property
    def order(self) -> Tensor:
        """What ``torch.ops.clebsch.convolution`` takes for a graph: int64, opaque; made once."""
        if self._order is None:
            self._order = self._make_order()
        return self._order

    def _make_order(self) -> Tensor:
        return torch.ops.clebsch.graph_order(
            self.senders.to(torch.int64), self.receivers.to(torch.int64), self.num_nodes
        )

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device."""
        return Graph(self.senders.to(device), self.receivers.to(device), self.num_nodes)

    def __repr__(self) -> str:
        return f"Graph(num_nodes={self.num_nodes}, num_edges={self.num_edges}, device={self.senders.device})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The order is made again where it is needed: its layout is not a format to keep.
        return Graph, (self.senders, self.receivers, self.num_nodes)


def _check_indices(name: str, indices: Any) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"Graph: {name} must be a tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        dtype = str(indices.dtype).removeprefix("torch.")
        raise TypeError(f"Graph: {name} must be int64 or int32, got {dtype}")
    if indices.dim() != 1:
        raise ValueError(f"Graph: {name} must have shape (num_edges,), got {tuple(indices.shape)}")


def _check_range(name: str, indices: Tensor, num_nodes: int) -> None:
    if indices.shape[0] == 0:
        return
    for value in map(int, indices.aminmax()):
        if not 0 <= value < num_nodes:
            raise IndexError(f"Graph: {name} must lie in [0, num_nodes) = [0, {num_nodes}), got {value}")
