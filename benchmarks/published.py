"""The problems that OpenEquivariance and FlashTP publish their speed on, against every peer installed.

Irreps, sizes and precisions are theirs; graphs are generated, with as many nodes and neighbours. Every peer's
numbers and gradients are compared with ours, and where they differ the row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from .convolution import OPERATORS as CONVOLUTION
from .convolution import ours as our_convolution
from .device import first_line
from .harness import Row
from .peers import E3NN, Call, Peer, ir_mul, offering
from .problems import Edges, Problem, channelwise, fully_connected, operands, symmetric_edges
from .session import Session
from .steps import BACKWARD, DOUBLE, FORWARD, STEPS, TOLERANCE, Function, difference, results
from .tensor_product import OPERATORS as TENSOR_PRODUCT
from .tensor_product import ours as our_product

OPERATORS = (*CONVOLUTION, *TENSOR_PRODUCT)


@dataclass(frozen=True)
class Nodes:
    """Of a graph: how many, neighbours of each, and whether these are near in the order of nodes."""

    count: int
    degree: int
    is_local: bool = True

    def edges(self, share: float) -> Edges:
        """Fewer nodes for a share of them, and then fewer neighbours where there are not so many."""
        count = max(8, round(self.count * share))
        return symmetric_edges(count, min(self.degree, (count - 1) // 2 * 2), self.is_local)


@dataclass(frozen=True)
class Case:
    name: str
    problem: Problem
    rows: int | Nodes
    shared_weights: bool = False
    steps: tuple[str, ...] = tuple(STEPS)

    def titles(self) -> Iterator[tuple[str, str]]:
        """Of its rows in the table, and their steps."""
        dtype = str(self.problem.dtype).removeprefix("torch.")
        return ((f"{self.name}, {dtype}, {step}", step) for step in self.steps)

    def in_both_precisions(self) -> Iterator[Case]:
        for dtype in (torch.float32, torch.float64):
            yield replace(self, problem=replace(self.problem, dtype=dtype))


def _both(mul: int, l_max: int) -> str:
    return "+".join(f"{mul}x{l}{p}" for l in range(l_max + 1) for p in "oe")


def _harmonics(l_max: int, parities: str = "eo", mul: int = 1) -> str:
    return "+".join(f"{mul}x{l}{parities[l % 2]}" for l in range(l_max + 1))


# nodes x edges -> kept. Of SevenNet-l3i5, which is in the lists of both:
SEVENNET, NEQUIX = "128x0e+64x1e+32x2e", "128x0e+64x1o+32x2e+32x3o"
SEVENNET_L3I5 = {
    "sevennet-l3i5, first": ("128x0e", _harmonics(3, "ee"), _harmonics(3, "ee")),
    "sevennet-l3i5": (f"{SEVENNET}+32x3e", _harmonics(3, "ee"), _harmonics(3, "ee")),
    "sevennet-l3i5, last": (f"{SEVENNET}+32x3e", _harmonics(3, "ee"), "0e"),
}

# OpenEquivariance: benchmark/problems.py and, for roofline, tests/benchmark.py.
ROWS, DOUBLE_ROWS, ROOFLINE_ROWS = 50_000, 20_000, 200_000
UVU = {
    "mace-large": ("128x0e+128x1o+128x2e", _harmonics(3), _harmonics(3)),
    "mace-medium": ("128x0e+128x1o", _harmonics(3), _harmonics(2)),
    "nequip-lips": (_both(32, 2), _harmonics(2), _both(1, 2)),
    "nequip-revmd17-aspirin": (_both(64, 1), _harmonics(1), _both(1, 1)),
    "nequip-revmd17-toluene": (_both(64, 2), _harmonics(2), _both(1, 2)),
    "nequip-revmd17-benzene": (_both(64, 3), _harmonics(3), _both(1, 3)),
    "nequip-water": (_both(32, 1), _harmonics(1), _both(1, 1)),
    "nequix-mp-1, first": ("89x0e", _harmonics(3), _harmonics(3)),
    "nequix-mp-1": (NEQUIX, _harmonics(3), _harmonics(3)),
    "nequix-mp-1, last": (NEQUIX, _harmonics(3), "0e"),
    **SEVENNET_L3I5,
}
POLYNOMIAL, DIFFDOCK, E3TOOLS = "64x0e+24x1e+24x1o+16x2e+16x2o", "10x1o+10x1e+48x0e+48x0o", "64x0e+16x1o"
UVW = {  # with the weights of each row, or one for all
    "tetris-poly-1": (_harmonics(3), _harmonics(3), POLYNOMIAL, True),
    "tetris-poly-2": (POLYNOMIAL, _harmonics(2), "1x0o+6x0e", True),
    "DiffDock-L=1": (DIFFDOCK, _harmonics(1), DIFFDOCK, False),
    "DiffDock-L=2": (DIFFDOCK, _harmonics(2), DIFFDOCK, False),
    "e3tools-conv": (E3TOOLS, _harmonics(1), "80x0e+16x1o", False),
    "e3tools-transformer": (E3TOOLS, _harmonics(1), E3TOOLS, True),
}
TETRIS = (  # of each layer of e3nn's example: features before it, after its product, and after it
    ("1x0e", "1x0e+1x1o+1x2e", "150x0e+50x1o+50x2e"),
    (
        "50x0e+50x1o+50x2e",
        "150x0e+200x1o+100x1e+100x2o+200x2e",
        "250x0e+50x1o+50x1e+50x2o+50x2e",
    ),
    (
        "50x0e+50x1o+50x1e+50x2o+50x2e",
        "100x0o+150x0e+300x1o+250x1e+250x2o+300x2e",
        "50x0o+250x0e+50x1o+50x1e+50x2o+50x2e",
    ),
    ("50x0o+50x0e+50x1o+50x1e+50x2o+50x2e", "150x0o+150x0e", "1x0o+6x0e"),
)
# Degrees of 128 channels, of y and of the output, all of even parity.
ROOFLINE = ((1, 1, 1), (2, 1, 2), (3, 3, 3), (5, 5, 3), (5, 3, 5), (6, 3, 6), (7, 4, 7), (7, 7, 7))
# Their molecules: heavy atoms of two proteins within 3 and 6 Angstrom, and diamond within 6.
GRAPHS = {"COVID spike": Nodes(23_000, 6), "DHFR": Nodes(1_800, 30), "carbon lattice": Nodes(1_000, 158)}

# FlashTP's ir_config: the layers of models; 64 neighbours anywhere, 16,384 edges.
OMPA = "64x1o+64x1e+32x2o+32x2e+32x3o+32x3e"
FLASHTP_GRAPH = Nodes(256, 64, is_local=False)
FLASHTP = {
    "mace-small": ("128x0e", _harmonics(3), _harmonics(3)),
    "mace-medium": ("128x0e+128x1o", _harmonics(3), _harmonics(3)),
    "mace-large, first": ("256x0e", _harmonics(3), _harmonics(3)),
    "mace-large": ("256x0e+256x1o", _harmonics(3), _harmonics(3)),
    "sevennet-0, first": ("128x0e", _harmonics(2, "ee"), _harmonics(2, "ee")),
    "sevennet-0": (SEVENNET, _harmonics(2, "ee"), _harmonics(2, "ee")),
    "sevennet-0, last": (SEVENNET, _harmonics(2, "ee"), "0e"),
    **SEVENNET_L3I5,
    "sevennet-MF-ompa, second": (NEQUIX, _harmonics(3), _both(1, 3)),
    "sevennet-MF-ompa, third": (f"128x0e+{OMPA}", _harmonics(3), _both(1, 3)),
    "sevennet-MF-ompa, fourth": (f"128x0o+128x0e+{OMPA}", _harmonics(3), _both(1, 3)),
    "sevennet-MF-ompa, last": (NEQUIX, _harmonics(3), "0e"),
    **{
        f"nequip-l{l}, {layer}": (nodes, _harmonics(l), _both(1, l))
        for l in range(1, 6)
        for layer, nodes in (
            ("first", "32x0e"),
            ("second", _harmonics(l, mul=32)),
            ("third", _both(32, l).removeprefix("32x0o+")),
            ("fourth", _both(32, l)),
        )
    },
}


def cases() -> Iterator[Case]:
    for case in _in_both_precisions():
        yield from case.in_both_precisions()
    for layer, (before, product, after) in enumerate(TETRIS):
        pairs = {"sc": (before, after), "lin1": (before, before)}
        pairs |= {"lin2": (product, after), "alpha": (product, "1x0e")}
        for name, (x, out) in pairs.items():
            case = f"OpenEquivariance tetris, layer {layer} {name}"
            yield Case(case, fully_connected(case, x, "1x0e", out), ROWS, shared_weights=True)
    for l1, l2, l3 in ROOFLINE:
        case = f"OpenEquivariance roofline, {l1} x {l2} to {l3}"
        problem = channelwise(case, "other", f"128x{l1}e", f"1x{l2}e", f"{l3}e")
        yield Case(case, problem, ROOFLINE_ROWS, steps=(FORWARD, BACKWARD))
    for name, irreps in FLASHTP.items():
        yield Case(f"FlashTP, {name}", channelwise(name, "other", *irreps), FLASHTP_GRAPH)


def _in_both_precisions() -> Iterator[Case]:
    for name, irreps in UVU.items():
        yield Case(f"OpenEquivariance uvu, {name}", channelwise(name, "other", *irreps), ROWS)
    for name, (*irreps, shared) in UVW.items():
        yield Case(f"OpenEquivariance uvw, {name}", fully_connected(name, *irreps), ROWS, shared)
    large = channelwise("mace-large", "other", *UVU["mace-large"])
    for name, nodes in GRAPHS.items():
        yield Case(f"OpenEquivariance conv, mace-large, {name}", large, nodes)


def _product_ir_mul(problem: Problem, shared_weights: bool, device: str) -> Call:
    return ir_mul(our_product(problem, shared_weights, device, "ir_mul"), problem, device)


def _convolution_ir_mul(problem: Problem, edges: Edges) -> Call:
    return ir_mul(our_convolution(problem, edges, "ir_mul"), problem, str(edges.senders.device))


# Ours in the other layout, compared as a peer is.
IR_MUL = Peer("clebsch ir_mul", "clebsch", "clebsch", _product_ir_mul, _convolution_ir_mul)


def rows(session: Session) -> Iterator[Row]:
    offered = [*offering("tensor_product"), *offering("convolution")]
    for remark in dict.fromkeys(peer.absent for peer in offered if peer.absent):
        session.note(remark)
    for case in cases():
        for name, step in case.titles():
            if session.wants(name):
                try:
                    yield from _compare(session, name, case, step)
                except Exception as failure:  # of ours, out of memory say; the other cases are measured
                    session.note(f"{name}: clebsch failed: {first_line(failure)}")


def _compare(session: Session, name: str, case: Case, step: str) -> Iterator[Row]:
    mine, theirs, inputs = _functions(session, case, step)
    expected, calls = results(step, mine, inputs), {"clebsch": STEPS[step](mine, inputs)}
    tolerance = TOLERANCE[case.problem.dtype]
    remarks: dict[str, str] = {}
    failed: dict[str, str] = {}
    for peer, make in theirs.items():
        try:
            call = make()
            error = difference(expected, results(step, call, inputs))
            calls[peer.name] = STEPS[step](call.function, call.operands(inputs))
            if session.compile and peer is E3NN and step != DOUBLE:  # which has no second derivative compiled
                calls["e3nn compiled"] = STEPS[step](torch.compile(call.function), inputs)
        except Exception as failure:  # whatever a package does where it does not run
            failed[peer.name] = first_line(failure)
        else:
            differs = "" if error <= tolerance else f"differs from clebsch by {error:.2g} of the norm"
            remarks[peer.name] = _joined(peer.remark, differs)
    del expected
    try:
        samples = session.time(name, calls)
    except torch.OutOfMemoryError as failure:
        session.note(f"{name}: not timed ({first_line(failure)})")
        return
    count, seconds = len(inputs[1]), samples.medians()
    detail = {"rows": count} | ({"failed": failed} if failed else {})
    remarks["clebsch"] = _joined(*(f"{who}: {reason}" for who, reason in failed.items()))
    for who in calls:
        remark = _joined(remarks.get(who, ""), samples.remarks.get(who, ""))
        beside = detail | ({"remark": remark} if remark else {})
        if who == "clebsch":
            own = samples.spread(who, 1e9 / count)
            yield Row(name, "clebsch, a row", own, "ns", None, seconds, beside)
        else:
            yield Row(name, f"{who} / clebsch", samples.ratio(who, "clebsch"), "x", None, seconds, beside)


def _joined(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


def _functions(
    session: Session, case: Case, step: str
) -> tuple[Function, dict[Peer, Callable[[], Call]], tuple[torch.Tensor, ...]]:
    """Ours, what makes those of the peers, and the operands."""
    problem, share = case.problem, session.device.share * session.pick(1, 0.1)
    if isinstance(case.rows, Nodes):
        (edges,) = session.put(case.rows.edges(share))
        noun, given, mine = "convolution", (problem, edges), our_convolution(problem, edges)
        inputs = operands(problem, edges.num_nodes, edges.count)
    else:
        rows = min(case.rows, DOUBLE_ROWS) if step == DOUBLE else case.rows
        count, given = max(20, round(rows * share)), (problem, case.shared_weights, session.device.name)
        noun, mine = "tensor_product", our_product(*given)
        inputs = operands(problem, count, count, case.shared_weights)
    there = [IR_MUL, *(peer for peer in offering(noun) if not peer.absent)]
    return mine, {peer: partial(getattr(peer, noun), *given) for peer in there}, session.put(*inputs)
