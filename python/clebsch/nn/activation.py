"""Scalar activations whose output has unit second moment, with e3nn 0.6's constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.o3.irreps import Irreps
from clebsch.ops.dispatch import require_dense

__all__ = ["Activation", "NormalizedActivation", "second_moment_constant"]

Function = Callable[[Tensor], Tensor]


def second_moment_constant(function: Function) -> float:
    """The c for which c f(z) has mean square 1 over normal z, as e3nn estimates it.

    e3nn draws 1e6 samples with seed 0 on the CPU in float64, which is off by up to 1e-3; trained weights
    carry that constant, so it is reproduced and not improved. Kept per function; a module may change, and is
    asked again.
    """
    return _estimate(function) if isinstance(function, torch.nn.Module) else _kept_estimate(function)


def _estimate(function: Function) -> float:
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.no_grad():
        z = torch.randn(1_000_000, generator=generator, dtype=torch.float64, device="cpu")
        return function(z).pow(2).mean().pow(-0.5).item()


_kept_estimate = lru_cache(maxsize=256)(_estimate)


class NormalizedActivation(torch.nn.Module):
    """c f(x), with the constant c of `second_moment_constant`."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.f = function
        self.cst = second_moment_constant(function)
        # e3nn leaves out a constant this close to 1.
        self.scale = 1.0 if abs(self.cst - 1.0) < 1e-4 else self.cst

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape; the same shape."""
        y = self.f(x)
        return y if self.scale == 1.0 else y * self.scale

    def extra_repr(self) -> str:
        """The function's name and constant, for repr."""
        return f"{getattr(self.f, '__name__', type(self.f).__name__)}, {self.cst:.6f}"


class Activation(torch.nn.Module):
    """Applies one function per block of scalars and leaves blocks whose function is None alone.

    Signature and numbers of ``e3nn.nn.Activation`` 0.6. The functions are scaled to unit second moment. A
    function of odd scalars must be even (the output is then 0e) or odd (0o).

    Args:
        irreps_in: in any form that `Irreps` reads.
        acts: one function or None per block.

    Raises:
        TypeError: what is no sequence of functions and None.
        ValueError: another number of functions, a function of a block of degree > 0, or parity that is not
            kept.
    """

    def __init__(self, irreps_in: Any, acts: Sequence[Function | None]) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        check_functions("Activation", "acts", acts)
        if len(self.irreps_in) != len(acts):
            raise ValueError(
                f"Activation: acts must have one entry per block of irreps_in = '{self.irreps_in}', "
                f"{len(self.irreps_in)} in all, got {len(acts)}"
            )
        self.acts = torch.nn.ModuleList(None if act is None else NormalizedActivation(act) for act in acts)
        self.irreps_out = Irreps(
            [
                (mul, ir if act is None else _output_irrep(ir, act))
                for (mul, ir), act in zip(self.irreps_in, self.acts, strict=True)
            ]
        )
        self._widths = [block.dim for block in self.irreps_in]

    def forward(self, features: Tensor, dim: int = -1) -> Tensor:
        """features with irreps_in along axis `dim`; the same shape, with irreps_out."""
        check_floating("Activation", features)
        if not -features.dim() <= dim < features.dim() or features.shape[dim] != sum(self._widths):
            raise ValueError(
                f"Activation: features must have size {sum(self._widths)} along axis {dim}, "
                f"got shape {tuple(features.shape)}"
            )
        if len(self._widths) == 1:
            act = self.acts[0]
            return features if act is None else act(features)
        outputs, start = [], 0
        for width, act in zip(self._widths, self.acts, strict=True):
            part = features.narrow(dim, start, width)
            outputs.append(part if act is None else act(part))
            start += width
        return torch.cat(outputs, dim=dim) if outputs else torch.zeros_like(features)

    def __repr__(self) -> str:
        acts = "".join(" " if act is None else "x" for act in self.acts)
        return f"{type(self).__name__} [{acts}] ({self.irreps_in} -> {self.irreps_out})"


def check_functions(layer: str, name: str, acts: Any) -> None:
    """TypeError unless `acts` is a sequence of functions and None."""
    if isinstance(acts, str) or not isinstance(acts, (Sequence, torch.nn.ModuleList)):
        raise TypeError(f"{layer}: {name} must be a list of one function or None per block, got {acts!r}")
    for i, act in enumerate(acts):
        if act is not None:
            check_function(layer, f"{name}[{i}]", act)


def check_function(layer: str, name: str, act: Any) -> None:
    """TypeError unless `act` can be called."""
    if not callable(act):
        raise TypeError(f"{layer}: {name} must be a function, got {act!r}")


def check_floating(layer: str, features: Any, name: str = "features") -> None:
    """TypeError unless `features` is a tensor that activations are functions of."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{layer}: {name} must be a tensor, got {type(features).__name__}")
    require_dense(layer, name, features)
    if not features.is_floating_point():
        dtype = str(features.dtype).removeprefix("torch.")
        raise TypeError(f"{layer}: {name} must be floating point, got {dtype}")


def check_features(
    layer: str, name: str, features: Any, width: int, batched: bool = False, compiled: bool = False
) -> None:
    """Raise unless `features` is a floating point tensor (..., width), or (batch, ..., width) if `batched`.

    TypeError or ValueError; `compiled` features must have a dtype that kernels have.
    """
    check_floating(layer, features, name)
    if compiled and features.dtype not in (torch.float32, torch.float64):
        dtype = str(features.dtype).removeprefix("torch.")
        raise TypeError(f"{layer}: {name} must be float32 or float64, got {dtype}")
    if features.dim() < (2 if batched else 1) or features.shape[-1] != width:
        leading = "batch, ..." if batched else "..."
        raise ValueError(f"{layer}: {name} must have shape ({leading}, {width}), got {tuple(features.shape)}")


def _output_irrep(ir: Any, act: NormalizedActivation) -> tuple[int, int]:
    if ir.l != 0:
        raise ValueError(f"Activation: a function needs scalars, got {ir}")
    if ir.p == 1:
        return 0, 1
    with torch.no_grad():
        x = torch.linspace(0, 10, 256, dtype=torch.float64)
        positive, negative = act(x), act(-x)
    if (positive - negative).abs().max() < 1e-5:
        return 0, 1
    if (positive + negative).abs().max() < 1e-5:
        return 0, -1
    name = getattr(act.f, "__name__", type(act.f).__name__)
    raise ValueError(
        f"Activation: a function of 0o must be even or odd, or parity is lost; {name} is neither"
    )
