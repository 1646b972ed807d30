"""FullyConnectedNet: the multi-layer perceptron that turns radial features into weights."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from clebsch.nn.activation import Function, NormalizedActivation, check_function
from clebsch.ops.dispatch import require_dense

__all__ = ["FullyConnectedNet"]


class _Layer(torch.nn.Module):
    """act(x W / sqrt(h_in var_in)) sqrt(var_out), or x W sqrt(var_out / (h_in var_in)) where there is no
    act.
    """

    def __init__(
        self, h_in: int, h_out: int, act: NormalizedActivation | None, var_in: float, var_out: float
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(h_in, h_out))
        self.act = act
        self.h_in, self.h_out, self.var_in, self.var_out = h_in, h_out, var_in, var_out
        # Without inputs there is nothing to scale.
        self._weight_scale = (h_in * var_in / (1.0 if act else var_out)) ** -0.5 if h_in else 1.0
        self._output_scale = act.scale * var_out**0.5 if act else 1.0

    def forward(self, x: Tensor) -> Tensor:
        y, scale = self.unscaled(x, 1.0)
        return y if scale == 1.0 else y * scale

    def unscaled(self, x: Tensor, input_scale: float) -> tuple[Tensor, float]:
        """The layer of input_scale * x as a tensor and a factor that is still to be multiplied in.

        Constants go into the weights, which are small, and not into activations, one row per edge.
        """
        weight = self.weight
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            wanted, got = (str(t.dtype).removeprefix("torch.") for t in (weight, x))
            raise TypeError(
                f"FullyConnectedNet: input must have the dtype of the weights, {wanted}, got {got}"
            )
        y = x @ (weight * (self._weight_scale * input_scale))
        return (y, 1.0) if self.act is None else (self.act.f(y), self._output_scale)

    def __repr__(self) -> str:
        act = None if self.act is None else getattr(self.act.f, "__name__", type(self.act.f).__name__)
        return f"Layer({self.h_in}->{self.h_out}, act={act})"


class FullyConnectedNet(torch.nn.Sequential):
    """Layers x -> act(x W / sqrt(size)) with activations of unit second moment and no biases.

    Signature, parameter names (``layer{i}.weight``, of shape (in, out)) and numbers of
    ``e3nn.nn.FullyConnectedNet`` 0.6.

    Args:
        hs: sizes of the input, the hidden layers and the output.
        act: function after every layer but the last; None for a linear net.
        variance_in, variance_out: second moments of the input (assumed) and the output (made so).
        out_act: whether `act` follows the last layer too.

    Raises:
        TypeError: hs that is no list, act that is no function.
        ValueError: a size that is not an integer >= 0, a variance that is not > 0; in `forward`, an input
            that does not end in hs[0].
    """

    def __init__(
        self,
        hs: Sequence[int],
        act: Function | None = None,
        variance_in: float = 1,
        variance_out: float = 1,
        out_act: bool = False,
    ) -> None:
        super().__init__()
        self.hs = _sizes(hs)
        for name, variance in (("variance_in", variance_in), ("variance_out", variance_out)):
            if not variance > 0:
                raise ValueError(f"FullyConnectedNet: {name} must be > 0, got {variance}")
        if act is not None:
            check_function("FullyConnectedNet", "act", act)
        normalized = None if act is None else NormalizedActivation(act)
        count = len(self.hs) - 1
        for i in range(count):
            is_last = i == count - 1
            layer = _Layer(
                self.hs[i],
                self.hs[i + 1],
                normalized if out_act or not is_last else None,
                variance_in if i == 0 else 1,
                variance_out if is_last else 1,
            )
            self.add_module(f"layer{i}", layer)

    def forward(self, input: Tensor) -> Tensor:
        """input (..., hs[0]) to (..., hs[-1]), of the dtype of the weights unless autocast is on."""
        x = input
        if not isinstance(x, Tensor):
            raise TypeError(f"FullyConnectedNet: input must be a tensor, got {type(x).__name__}")
        require_dense("FullyConnectedNet", "input", x)
        if self.hs and (x.dim() == 0 or x.shape[-1] != self.hs[0]):
            raise ValueError(
                f"FullyConnectedNet: input must have shape (..., {self.hs[0]}), got {tuple(x.shape)}"
            )
        scale = 1.0
        for layer in self:
            if isinstance(layer, _Layer) and not _has_hooks(layer):
                x, scale = layer.unscaled(x, scale)
            else:
                x, scale = layer(x if scale == 1.0 else x * scale), 1.0
        return x if scale == 1.0 else x * scale

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.hs}"


def _sizes(hs: Sequence[int]) -> list[int]:
    if not isinstance(hs, Iterable):
        raise TypeError(f"FullyConnectedNet: hs must be a list of sizes, got {hs!r}")
    sizes = list(hs)
    if any(isinstance(h, bool) or not hasattr(h, "__index__") or h < 0 for h in sizes):
        raise ValueError(f"FullyConnectedNet: hs must be sizes >= 0, got {sizes}")
    return [operator.index(h) for h in sizes]


def _has_hooks(layer: torch.nn.Module) -> bool:
    """Whether somebody watches this layer, or (as weight_norm does) makes its weight before every call."""
    return bool(
        layer._forward_pre_hooks or layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )
