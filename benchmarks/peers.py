"""Other packages that compute the same, each with its order of components, weights and axes. None is needed.

What an adapter gives is compared with our numbers before it is timed, so that a mistake in it shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .problems import Edges, Problem, weight_numel
from .steps import Function

Map = Callable[[Tensor], Tensor]


class Unsupported(ValueError):
    """What a peer does not compute, and why."""


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Call:
    """`function` of operands as the peer wants them: ours through the maps `given`; `back` makes its result
    ours. What is timed is `function`; called, all of it, with gradients that are ours too."""

    function: Function
    given: tuple[Map, ...] = (unchanged,) * 3
    back: Map = unchanged

    def operands(self, ours: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(change(tensor) for change, tensor in zip(self.given, ours, strict=True))

    def __call__(self, *ours: Tensor) -> Tensor:
        return self.back(self.function(*self.operands(ours)))


@dataclass(frozen=True)
class Peer:
    """A package (`package` to install, `module` to import; `kernels`, a module without which it is slow) and
    what it offers: under each noun a function that makes a `Call`, or raises what the package does, or
    `Unsupported`."""

    name: str
    package: str
    module: str
    tensor_product: Callable[[Problem, bool, str], Call] | None = None
    convolution: Callable[[Problem, Edges], Call] | None = None
    spherical_harmonics: Callable[[int, str], Call] | None = None
    kernels: str = ""

    @property
    def absent(self) -> str:
        """What to install, or ""."""
        return "" if find_spec(self.module) else f"not compared, not installed: pip install {self.package}"

    @property
    def remark(self) -> str:
        """What must be known of its speed, or ""."""
        return f"without its kernels, {self.kernels}" if self.kernels and not find_spec(self.kernels) else ""


def ir_mul(function: Function, problem: Problem, device: str, weights: Map = unchanged) -> Call:
    """Of a function that wants components outermost and gives them so."""
    given = [_transposed(irreps, device) for irreps in (problem.irreps_in1, problem.irreps_in2)]
    return Call(function, (*given, weights), _transposed(problem.irreps_out, device, back=True))


def _transposed(irreps: str, device: str, back: bool = False) -> Map:
    """Each block with components outermost, from channels outermost; or the other way."""
    from clebsch.algebra.irreps import Irreps

    columns, start = [], 0
    for mul, ir in Irreps(irreps):
        block = torch.arange(start, start + mul * ir.dim)
        columns.append(block.reshape(mul, ir.dim).t().flatten())
        start += mul * ir.dim
    order = torch.cat(columns)
    order = (torch.argsort(order) if back else order).to(device)
    return lambda features: features[:, order]


def offering(noun: str) -> list[Peer]:
    """Peers that have it."""
    return [peer for peer in PEERS if getattr(peer, noun) is not None]


# e3nn


def e3nn_layer(problem: Problem, shared_weights: bool, device: str) -> torch.nn.Module:
    from e3nn import o3

    weights = {"shared_weights": shared_weights, "internal_weights": False}
    with _default(problem.dtype):  # which its coefficients are rounded to
        return o3.TensorProduct(*problem.arguments, **weights).to(device)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _e3nn_product(problem: Problem, shared_weights: bool, device: str) -> Call:
    return Call(e3nn_layer(problem, shared_weights, device))


def _e3nn_convolution(problem: Problem, edges: Edges) -> Call:
    from .convolution import e3nns

    return Call(e3nns(problem, edges))


# OpenEquivariance: e3nn's conventions, but for the order of weights


def _oeq_problem(problem: Problem, shared_weights: bool = False, **layout: str):
    import numpy as np
    import openequivariance as oeq

    dtype = {torch.float32: np.float32, torch.float64: np.float64}[problem.dtype]
    options = {"shared_weights": shared_weights, "internal_weights": False} | layout
    return oeq.TPProblem(*problem.arguments, irrep_dtype=dtype, weight_dtype=dtype, **options)


def _oeq_product(problem: Problem, shared_weights: bool, device: str) -> Call:
    import openequivariance as oeq

    layer = oeq.TensorProduct(_oeq_problem(problem, shared_weights))
    return Call(layer, (unchanged, unchanged, layer.reorder_weights_from_e3nn))


def _oeq_product_ir_mul(problem: Problem, shared_weights: bool, device: str) -> Call:
    import openequivariance as oeq

    layer = oeq.TensorProduct(_oeq_problem(problem, shared_weights, layout="ir_mul"))
    return ir_mul(layer, problem, device, layer.reorder_weights_from_e3nn)


def _oeq_convolution(problem: Problem, edges: Edges) -> Call:
    """Sums by atomic additions, in no fixed order."""
    import openequivariance as oeq

    layer = oeq.TensorProductConv(_oeq_problem(problem), deterministic=False)
    function = lambda x, y, weight: layer(x, y, weight, edges.receivers, edges.senders)  # noqa: E731
    return Call(function, (unchanged, unchanged, layer.reorder_weights_from_e3nn))


def _oeq_deterministic_convolution(problem: Problem, edges: Edges) -> Call:
    """Takes the order of edges by sender, for a graph with every edge in both directions."""
    import openequivariance as oeq

    layer = oeq.TensorProductConv(_oeq_problem(problem), deterministic=True)
    by_sender = torch.argsort(edges.senders, stable=True)

    def function(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return layer(x, y, weight, edges.receivers, edges.senders, by_sender)

    return Call(function, (unchanged, unchanged, layer.reorder_weights_from_e3nn))


# cuEquivariance: components outermost, which it need not transpose


@cache
def _irreps_of_e3nn() -> type:
    """Irreps whose couplings and order are e3nn's; its own differ in signs, and in which parity is first."""
    import cuequivariance as cue
    import numpy as np

    from clebsch.algebra.so3 import coupling

    class Irrep(cue.O3):
        def __mul__(self, other: Irrep) -> Iterator[Irrep]:
            return [Irrep(l=ir.l, p=ir.p) for ir in cue.O3.__mul__(self, other)]

        @classmethod
        def clebsch_gordan(cls, *given):
            one, two, three = map(cls._from, given)
            found = np.zeros((int(one.p * two.p == three.p), one.dim, two.dim, three.dim))
            if len(found):
                for entry in coupling(one.l, two.l, three.l):
                    found[0, entry.m1, entry.m2, entry.m3] = entry.value * math.sqrt(three.dim)
            return found

        def __lt__(self, other: Irrep) -> bool:
            other = self._from(other)
            return (self.l, self.p) < (other.l, other.p)

        @classmethod
        def iterator(cls) -> Iterator[Irrep]:
            for l in itertools.count():
                yield from (cls(l=l, p=(-1) ** l), cls(l=l, p=-((-1) ** l)))  # the trivial one first

    return Irrep


def _cue_layer(problem: Problem, shared_weights: bool, device: str) -> tuple[torch.nn.Module, Call]:
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    in1, in2, out = (
        cue.Irreps(_irreps_of_e3nn(), text)
        for text in (problem.irreps_in1, problem.irreps_in2, problem.irreps_out)
    )
    modes = {mode for *_, mode, _ in problem.instructions}
    options = {"layout": cue.ir_mul, "shared_weights": shared_weights, "internal_weights": False}
    options |= {"device": device, "dtype": problem.dtype}
    if modes == {"uvu"}:
        layer = cuet.ChannelWiseTensorProduct(in1, in2, list({ir for _, ir in out}), **options)
    elif modes == {"uvw"}:
        layer = cuet.FullyConnectedTensorProduct(in1, in2, out, **options)
    else:
        raise Unsupported(f"modes {sorted(modes)}")
    if str(layer.irreps_out) != str(out) or layer.weight_numel != weight_numel(problem):
        raise Unsupported("its paths are others")
    weights = (lambda weight: weight[None]) if shared_weights else unchanged
    return layer, ir_mul(layer, problem, device, weights)


def _cue_product(problem: Problem, shared_weights: bool, device: str) -> Call:
    return _cue_layer(problem, shared_weights, device)[1]


def _cue_convolution(problem: Problem, edges: Edges) -> Call:
    """One kernel that gathers and adds atomically where the layer has one."""
    layer, call = _cue_layer(problem, False, str(edges.senders.device))
    ends = {"indices_1": edges.senders, "indices_out": edges.receivers, "size_out": edges.num_nodes}
    return Call(lambda x, y, weight: layer(x, y, weight, **ends), call.given, call.back)


# sphericart: the polar axis is the last, harmonics have unit norm on the sphere


def _sphericart(l_max: int, device: str) -> Call:
    from sphericart.torch import SphericalHarmonics

    layer = SphericalHarmonics(l_max)
    return Call(
        layer, (lambda points: points[:, [2, 0, 1]].contiguous(),), lambda y: math.sqrt(4 * math.pi) * y
    )


_OEQ = ("openequivariance", "openequivariance")
E3NN = Peer("e3nn", "e3nn", "e3nn", _e3nn_product, _e3nn_convolution)
SPHERICART = Peer("sphericart", "sphericart-torch", "sphericart", spherical_harmonics=_sphericart)
PEERS = (
    E3NN,
    Peer("OpenEquivariance", *_OEQ, _oeq_product, _oeq_convolution),
    Peer("OpenEquivariance ir_mul", *_OEQ, _oeq_product_ir_mul),
    Peer("OpenEquivariance deterministic", *_OEQ, convolution=_oeq_deterministic_convolution),
    Peer(
        "cuEquivariance",
        "cuequivariance-torch",
        "cuequivariance_torch",
        _cue_product,
        _cue_convolution,
        kernels="cuequivariance_ops_torch",
    ),
    SPHERICART,
)
