"""How many gathered rows a GPU's second cache would still hold: least recently used leaves first.

A model of a cache, not of a GPU: rows enter and leave whole, every byte that passes by takes room, and so
many receivers are at work at a time, an edge of each in turn.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SecondCache:
    """`capacity` in bytes, and how many receivers are at work at a time."""

    capacity: int
    receivers: int

    def hits(self, senders: torch.Tensor, row: float, passing: float) -> float:
        """The share of gathers that find their row, for senders (nodes, edges of a node), rows of so many
        bytes, and so many bytes beside them that pass by with every edge."""
        held: OrderedDict[int, float] = OrderedDict()
        room, found, passed = float(self.capacity), 0, 0
        for group in senders.split(self.receivers):
            for rank in group.T.tolist():
                for sender in rank:
                    if sender in held:
                        found += 1
                        held.move_to_end(sender)
                    else:
                        held[sender] = row
                        room -= row
                passed -= 1  # no sender's number
                held[passed] = passing * len(rank)
                room -= held[passed]
                while room < 0:
                    room += held.popitem(last=False)[1]
        return found / senders.numel()
