"""The products and graphs that are timed: those of MACE and NequIP, with per-edge weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

DEGREE = 40  # edges per node
HIDDEN = 64  # columns of what the last layer of a radial network multiplies


@dataclass(frozen=True)
class Problem:
    """A product of node features (in1) with edge harmonics (in2) in `dtype`; floors are set per `family`."""

    name: str
    family: str
    irreps_in1: str
    irreps_in2: str
    irreps_out: str
    instructions: tuple[tuple, ...]
    dtype: torch.dtype = torch.float32

    @property
    def arguments(self) -> tuple:
        """Of the constructors of e3nn and clebsch alike."""
        return self.irreps_in1, self.irreps_in2, self.irreps_out, list(self.instructions)


def channelwise(name: str, family: str, node: str, edge: str, keep: str) -> Problem:
    """Every allowed uvu path into an irrep of `keep`, outputs sorted: how MACE and NequIP choose theirs."""
    from clebsch.algebra.irreps import Irreps

    in1, in2, kept = Irreps(node), Irreps(edge), {ir for _, ir in Irreps(keep)}
    found = [
        (i, j, (mul, ir))
        for (i, (mul, ir1)), (j, (_, ir2)) in product(enumerate(in1), enumerate(in2))
        for ir in ir1 * ir2
        if ir in kept
    ]
    out, place, _ = Irreps([block for _, _, block in found]).sort()
    paths = [(i, j, place[k], "uvu", True) for k, (i, j, _) in enumerate(found)]
    return Problem(name, family, node, edge, str(out), tuple(sorted(paths, key=lambda path: path[2])))


def fully_connected(name: str, in1: str, in2: str, out: str) -> Problem:
    """Every allowed uvw path between the blocks of the three: e3nn's FullyConnectedTensorProduct."""
    from clebsch.algebra.irreps import Irreps

    blocks = [list(enumerate(Irreps(irreps))) for irreps in (in1, in2, out)]
    paths = tuple(
        (i, j, k, "uvw", True)
        for (i, (_, ir1)), (j, (_, ir2)), (k, (_, ir)) in product(*blocks)
        if ir in ir1 * ir2
    )
    return Problem(name, "other", in1, in2, out, paths)


EDGE2, EDGE3 = "1x0e+1x1o+1x2e", "1x0e+1x1o+1x2e+1x3o"
BOTH = "32x0o+32x0e+32x1o+32x1e+32x2o+32x2e"
MODELS = {
    "mace-medium": ("MACE", "128x0e+128x1o", EDGE3, EDGE3),
    "mace-large": ("MACE", "128x0e+128x1o+128x2e", EDGE3, EDGE3),
    "nequip-64": ("NequIP", "64x0e+64x1o+64x2e+64x3o", EDGE3, EDGE3),
    "nequip-32-both": ("NequIP", BOTH, EDGE2, BOTH),
    "nequip-M": ("NequIP", "128x0e+64x1o+32x2e", EDGE2, EDGE2),
    "nequip-L": ("NequIP", "128x0e+64x1o+32x2e+32x3o", EDGE3, EDGE3),
}


def model(name: str) -> Problem:
    return channelwise(name, *MODELS[name])


def mace_medium(multiplicity: int) -> Problem:
    """MACE-medium's ten paths at any multiplicity."""
    node = f"{multiplicity}x0e+{multiplicity}x1o"
    return channelwise(f"multiplicity {multiplicity}", "MACE", node, EDGE3, EDGE3)


def dimension(irreps: str) -> int:
    from clebsch.algebra.irreps import Irreps

    return Irreps(irreps).dim


def weight_numel(problem: Problem) -> int:
    from clebsch.algebra.plan import ProductPlan

    return ProductPlan.from_instructions(*problem.arguments).weight_numel


def multiply_adds(problem: Problem) -> int:
    """Useful multiply-adds of one edge, forward: what the cheapest known order of contraction needs.

    C with the harmonics once per path (one per non-zero coefficient), then for each channel the weight times
    x (2 l1 + 1) and one per structural non-zero of the contracted matrix.
    """
    from clebsch.algebra.irreps import Irreps
    from clebsch.algebra.so3 import coupling

    in1, in2, out = (Irreps(text) for text in (problem.irreps_in1, problem.irreps_in2, problem.irreps_out))
    total = 0
    for i, j, k, *_ in problem.instructions:
        l1, l2, l3 = in1[i].ir.l, in2[j].ir.l, out[k].ir.l
        entries = coupling(l1, l2, l3)
        matrix = {(entry.m1, entry.m3) for entry in entries}
        total += len(entries) + in1[i].mul * (2 * l1 + 1 + len(matrix))
    return total


@dataclass(frozen=True)
class Edges:
    """Edge list sorted by receiver, `DEGREE` edges per node unless the maker says otherwise."""

    senders: torch.Tensor
    receivers: torch.Tensor
    num_nodes: int

    @property
    def count(self) -> int:
        return len(self.senders)

    def to(self, device: str) -> Edges:
        return Edges(self.senders.to(device), self.receivers.to(device), self.num_nodes)


def random_edges(num_nodes: int, num_edges: int) -> Edges:
    """Equally many edges per receiver, their senders anywhere: the hardest on caches."""
    generator = torch.Generator().manual_seed(1)
    senders = torch.randint(num_nodes, (num_edges,), generator=generator)
    return Edges(senders, torch.arange(num_edges) * num_nodes // num_edges, num_nodes)


def local_edges(num_nodes: int) -> Edges:
    """The `DEGREE` nearest neighbours on a cubic lattice numbered row by row, as atoms sorted in space are.

    Boundaries are helical (neighbours are fixed distances in the node number, modulo num_nodes), so any
    number of nodes will do.
    """
    side = max(1, round(num_nodes ** (1 / 3)))
    steps = sorted(product(range(-3, 4), repeat=3), key=lambda step: (sum(s * s for s in step), step))
    offsets = torch.tensor([(a * side + b) * side + c for a, b, c in steps[1 : DEGREE + 1]])
    nodes = torch.arange(num_nodes)
    senders = (nodes[:, None] + offsets).remainder(num_nodes).flatten()
    return Edges(senders, nodes.repeat_interleave(DEGREE), num_nodes)


def symmetric_edges(num_nodes: int, degree: int, is_local: bool) -> Edges:
    """`degree` neighbours of each node (even and below num_nodes), every edge in both directions, sorted by
    receiver and then by sender, as some peers demand. Nodes lie on a ring and neighbours fixed steps away:
    the nearest on a cubic lattice numbered row by row, or random ones."""
    steps = range(1, (num_nodes + 1) // 2)  # num_nodes - step is the same edge the other way
    if is_local:
        side = max(1, round(num_nodes ** (1 / 3)))
        cells = sorted(product(range(-4, 5), repeat=3), key=lambda cell: (sum(s * s for s in cell), cell))
        numbers = [((a * side + b) * side + c) % num_nodes for a, b, c in cells]
        near = dict.fromkeys(min(number, num_nodes - number) for number in numbers)
        steps = [step for step in near if step in steps]
    else:
        order = torch.randperm(len(steps), generator=torch.Generator().manual_seed(2))
        steps = [steps[i] for i in order.tolist()]
    chosen = torch.tensor(steps[: degree // 2])
    nodes = torch.arange(num_nodes)
    senders = (nodes[:, None] + torch.cat([chosen, -chosen])).remainder(num_nodes).sort(dim=1).values
    return Edges(senders.flatten(), nodes.repeat_interleave(senders.shape[1]), num_nodes)


def operands(
    problem: Problem, rows_x: int, rows: int, shared_weights: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random x (rows_x, in1), y (rows, in2), weight (rows, numel) or, if shared, (numel,)."""
    given = {"generator": torch.Generator().manual_seed(0), "dtype": problem.dtype}
    x = torch.randn(rows_x, dimension(problem.irreps_in1), **given)
    y = torch.randn(rows, dimension(problem.irreps_in2), **given)
    shape = (weight_numel(problem),) if shared_weights else (rows, weight_numel(problem))
    return x, y, torch.randn(shape, **given)
