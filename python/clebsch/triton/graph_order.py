"""The order of the edges of a graph on a device, by torch's operations: the one of csrc/cuda/graph_view.h."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import require

__all__ = ["graph_order"]


def graph_order(senders: Tensor, receivers: Tensor, num_nodes: int) -> Tensor:
    """clebsch::graph_order, two stable sorts and bisection; nothing waits for the device, whose assertion
    stops the program if an index lies outside [0, num_nodes)."""
    noun = "graph_order"
    integers = senders.dtype == receivers.dtype == torch.int64
    require(integers, noun, "senders and receivers must be int64")
    vectors = senders.dim() == receivers.dim() == 1 and senders.shape == receivers.shape
    require(vectors, noun, "senders and receivers must be vectors of the same length")
    require(senders.device == receivers.device, noun, "senders and receivers must be on one device")
    require(0 <= num_nodes < 1 << 48, noun, f"num_nodes must lie in [0, 2^48), got {num_nodes}")
    for indices in (senders, receivers):
        inside = ((indices >= 0) & (indices < num_nodes)).all()
        torch._assert_async(inside, f"graph_order: indices must lie in [0, {num_nodes})")
    nodes = torch.arange(num_nodes + 1, device=senders.device)
    by_receiver, edge = torch.sort(receivers, stable=True)
    sender = senders[edge]
    by_sender, outgoing = torch.sort(sender, stable=True)
    return torch.cat(
        [
            torch.full((2,), -1, dtype=torch.int64, device=senders.device),
            torch.searchsorted(by_receiver, nodes),
            torch.searchsorted(by_sender, nodes),
            torch.zeros_like(nodes),
            edge,
            sender,
            by_receiver,
            outgoing,
            torch.zeros(2 * senders.shape[0], dtype=torch.int64, device=senders.device),
        ]
    )
