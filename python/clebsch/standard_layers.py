"""One of each layer, and plans that reach every kernel: what `clebsch check` runs on a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from clebsch import nn, o3
from clebsch.algebra.plan import MODES

__all__ = ["standard_layers"]

# Irreps for each mode, with multiplicities that tell all indices apart and exceed the blocks of kernels.
_OF_MODE = {
    "uvw": ("17x1o", "5x1o", "31x2e"),
    "uvu": ("33x1o", "7x1o", "33x2e"),
    "uvv": ("7x1o", "33x1o", "33x2e"),
    "uuw": ("31x1o", "31x1o", "37x2e"),
    "uuu": ("67x1o", "67x1o", "67x2e"),
    "uvuv": ("11x1o", "13x1o", "143x2e"),
    "uvu<v": ("19x1o", "19x1o", "171x1e"),
    "u<vw": ("13x1o", "13x1o", "17x1e"),
}


def standard_layers() -> Iterator[tuple[str, torch.nn.Module]]:
    """Names and layers; the random numbers of their parameters leave torch's generator as it was."""
    for name, make in _makers().items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield name, make()


def _makers() -> dict[str, Callable[[], torch.nn.Module]]:
    silu, tanh = torch.nn.functional.silu, torch.tanh
    makers: dict[str, Callable[[], torch.nn.Module]] = {}
    for mode in MODES:
        for shared in (True, False):
            weights = "shared weights" if shared else "weights of each row"
            makers[f"product {mode}, {weights}"] = _of_mode(mode, shared)
    for degree, mul in ((3, 128), (3, 5), (6, 16)):
        for layout in ("mul_ir", "ir_mul"):
            name = f"convolution uvu to degree {degree}, {mul} channels, {layout}"
            makers[name] = _convolution(degree, mul, layout)
    return makers | {
        "harmonics to degree 4": lambda: o3.SphericalHarmonics(range(5), True, "component"),
        "harmonics to degree 9": lambda: o3.SphericalHarmonics([9, 0, 3, 3], False, "integral"),
        "linear": lambda: o3.Linear("32x0e+16x1o+7x2e+9x0e", "24x0e+16x1o+5x2e", biases=True),
        "gate": lambda: nn.Gate("16x0e+8x0o", [silu, tanh], "24x0e", [torch.sigmoid], "16x1o+8x2e"),
        "activation": lambda: nn.Activation("16x0e+8x0o", [silu, tanh]),
        "fully connected net": lambda: nn.FullyConnectedNet([8, 32, 32, 16], silu),
    }


def _of_mode(mode: str, shared: bool) -> Callable[[], torch.nn.Module]:
    irreps: tuple[Any, ...] = _OF_MODE[mode]
    return lambda: o3.TensorProduct(*irreps, [(0, 0, 0, mode, True)], shared_weights=shared)


def _convolution(degree: int, mul: int, layout: str) -> Callable[[], torch.nn.Module]:
    """Scalars and vectors with harmonics of some degrees, into all that they give; sorted outputs."""
    inputs = o3.Irreps(f"{mul}x0e+{mul}x1o")
    edges = o3.Irreps([(1, (l, (-1) ** l)) for l in (0, 1, degree)])
    found = [
        (i, j, (mul, ir))
        for i, (_, ir1) in enumerate(inputs)
        for j, (_, ir2) in enumerate(edges)
        for ir in ir1 * ir2
    ]
    out, place, _ = o3.Irreps([block for _, _, block in found]).sort()
    paths = [(i, j, place[k], "uvu", True) for k, (i, j, _) in enumerate(found)]
    return lambda: nn.TensorProductConv(inputs, edges, out, paths, layout=layout)
