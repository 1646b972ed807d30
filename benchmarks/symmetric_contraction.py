"""MACE's symmetric contraction, 108 nodes of 128 channels and 9 of them: clebsch, and MACE's own module where
it is installed, or else the same einsums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from .harness import Row, at_least
from .session import Session
from .steps import FORWARD, STEPS, Function, require_same

OPERATORS = tuple("symmetric_contraction" + step for step in ("", "_backward", "_double_backward"))
FLOOR = 20  # of the peer's speed with backward


@dataclass(frozen=True)
class Case:
    name: str
    irreps_out: str
    nodes: int
    irreps_in: str = "128x0e+128x1o+128x2e+128x3o"
    correlation: int = 3
    species: int = 2
    is_held: bool = False


def cases() -> list[Case]:
    medium, large = "128x0e+128x1o", "128x0e+128x1o+128x2e"
    return [
        Case("mace-small", "128x0e", 108),
        Case("mace-medium", medium, 108, is_held=True),
        Case("mace-medium, 9 nodes", medium, 9),
        Case("mace-medium, 89 species", medium, 108, species=89),
        Case("mace-large", large, 108),
        Case("l <= 1, correlation 4", medium, 108, "128x0e+128x1o", 4),
    ]


def implementations(case: Case, device: str = "cpu") -> dict[str, Function]:
    """(x, *weights) -> out, the weights of every target with the powers ascending."""
    from clebsch import nn
    from clebsch.nn.symmetric_contraction import contract

    layer = nn.SymmetricContraction(
        case.irreps_in, case.irreps_out, case.correlation, num_elements=case.species
    ).to(device)
    one_hot = torch.nn.functional.one_hot(_index(case), case.species).float().to(device)
    functions: dict[str, Function] = {
        "clebsch": lambda x, *weights: contract(x, one_hot, weights, layer._table, layer._widths)
    }
    if find_spec("mace"):
        functions["mace"] = _of_mace(case, one_hot)
    else:
        u_matrices = [contraction.u_matrices() for contraction in layer.contractions]
        functions["torch"] = lambda x, *weights: _einsums(u_matrices, x, one_hot, weights)
    return functions


def _of_mace(case: Case, one_hot: Tensor) -> Function:
    from mace.modules.symmetric_contraction import SymmetricContraction

    module = SymmetricContraction(
        case.irreps_in, case.irreps_out, case.correlation, num_elements=case.species
    ).to(one_hot.device)
    names = []
    for i in range(len(module.contractions)):
        below = range(case.correlation - 1)
        names += [f"contractions.{i}.weights.{j}" for j in reversed(below)] + [
            f"contractions.{i}.weights_max"
        ]

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x, one_hot))

    return function


def _einsums(
    u_matrices: Sequence[Sequence[Tensor]], x: Tensor, one_hot: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """From the highest power down: couplings with weights, one index met with x, the next power added."""
    blocks, rest = [], list(weights)
    for target in u_matrices:
        own, rest = rest[: len(target)], rest[len(target) :]
        total: Tensor | float = 0.0
        for u, weight in zip(reversed(target), reversed(own), strict=True):
            of_nodes = torch.einsum("zkc,nz->nkc", weight, one_hot)
            total = total + torch.einsum("...k,nkc->nc...", u, of_nodes)
            total = torch.einsum("nc...i,nci->nc...", total, x)
        blocks.append(total.flatten(1))
    return torch.cat(blocks, dim=1)


def _index(case: Case) -> Tensor:
    return torch.arange(case.nodes) % min(case.species, 3)


def rows(session: Session) -> Iterator[Row]:
    for case in cases():
        for step in STEPS:
            name = f"{case.name}, {step}"
            if session.wants(name):
                yield from _compare(session, name, case, step)


def _compare(session: Session, name: str, case: Case, step: str) -> Iterator[Row]:
    from clebsch import nn

    functions = implementations(case, session.device.name)
    layer = nn.SymmetricContraction(
        case.irreps_in, case.irreps_out, case.correlation, num_elements=case.species
    )
    generator = torch.Generator().manual_seed(0)
    x, *weights = session.put(
        torch.randn(case.nodes, layer.num_channels, layer._dim, generator=generator),
        *(weight.detach() for part in layer.contractions for weight in part.ascending_weights()),
    )
    peer = next(key for key in functions if key != "clebsch")
    require_same(name, functions["clebsch"](x, *weights), functions[peer](x, *weights))
    samples = session.time(
        name, {key: STEPS[step](function, (x, *weights)) for key, function in functions.items()}
    )
    floor = session.held(at_least(FLOOR)) if case.is_held and step != FORWARD else None
    ratio = samples.ratio(peer, "clebsch")
    yield Row(name, f"{peer} / clebsch", ratio, "x", floor, samples.medians(), {"nodes": case.nodes})
