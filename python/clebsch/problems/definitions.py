"""Layers of torch's functions beside kernels: what they must give is their definition in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import ProductPlan
from clebsch.nn.symmetric_contraction_basis import coupled_powers
from clebsch.problems.expected import Arrays, Draws, Expected, Problem, Unknown, derivatives
from clebsch.reference.tensor_product import terms
from clebsch.survey import Layer

__all__ = ["DEFINED"]

# Results may be off by this many roundings of the largest of their numbers.
ROUNDINGS = 64


class _Defined(Problem):
    """A layer of torch's functions: what it must give is its definition in float64, derivatives by autograd.

    There is no bound for any function; results may be off by `ROUNDINGS` roundings of the largest number.
    """

    names = ("features",)

    def __init__(self, layer: Layer, draw: Draws, rows: int, edges_per_node: float) -> None:
        super().__init__(layer, draw)
        self.module = _without_hooks(self.module)
        self._set_operands(rows)

    def _set_operands(self, rows: int) -> None:
        module = self.module
        self.spaces, self.space_out = (Irreps(str(module.irreps_in)),), Irreps(str(module.irreps_out))
        self.operands = (self.draw(rows, self.spaces[0].dim),)

    def call(self, features: Tensor) -> Tensor:
        return self.module.forward(features)

    def definition(self, features: Tensor) -> Tensor:
        """The layer, plainly."""
        raise NotImplementedError

    def output(self, operands: Arrays) -> Expected:
        with torch.no_grad():
            return _rounded(self.definition(*map(torch.from_numpy, operands)))

    @cached_property
    def _derivatives(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return derivatives(self.definition, self.tensors(torch.float64), self.cotangent, self.tangents)[1:]

    def gradients(self) -> tuple[Expected, ...]:
        return tuple(map(_rounded, self._derivatives[0]))

    def second_gradients(self) -> tuple[Expected, ...]:
        return tuple(map(_rounded, self._derivatives[1]))


def _without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose parts run nothing that a user hung on them."""
    try:
        module = copy.deepcopy(module)
    except Exception as error:  # whatever a part of it does when copied
        raise Unknown(f"it cannot be copied: {error}") from error
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return module


def _rounded(result: Tensor) -> Expected:
    value = result.detach().numpy()
    largest = np.abs(value).max(initial=0.0)
    return Expected(value, np.full(value.shape, largest), np.full(value.shape, ROUNDINGS))


def _blocks(features: Tensor, irreps: Irreps) -> list[Tensor]:
    """(rows, mul, 2l + 1) of each block."""
    parts = features.split([block.dim for block in irreps], dim=-1)
    return [part.unflatten(-1, (mul, ir.dim)) for part, (mul, ir) in zip(parts, irreps, strict=True)]


def _activate(features: Tensor, acts: Sequence[Any], irreps: Irreps) -> Tensor:
    """Of each block its function, scaled to unit second moment; None leaves it alone."""
    parts = features.split([block.dim for block in irreps], dim=-1)
    applied = [part if act is None else act.forward(part) for part, act in zip(parts, acts, strict=True)]
    return torch.cat(applied, dim=-1) if applied else features


class _Activation(_Defined):
    def definition(self, features: Tensor) -> Tensor:
        return _activate(features, self.module.acts, self.spaces[0])


class _Gate(_Defined):
    """act_scalars(scalars) + act_gates(gates) * gated, of the sorted sum of the three."""

    def definition(self, features: Tensor) -> Tensor:
        module = self.module
        parts = [
            Irreps(str(given)) for given in (module.irreps_scalars, module.irreps_gates, module.irreps_gated)
        ]
        blocks = [(kind, mul, ir) for kind, irreps in enumerate(parts) for mul, ir in irreps]
        order = sorted(range(len(blocks)), key=lambda i: (blocks[i][2].l, blocks[i][2].p))
        columns = features.split([blocks[i][1] * blocks[i][2].dim for i in order], dim=-1)
        found = dict(zip(order, columns, strict=True))
        scalars, gates, gated = (
            torch.cat(
                [features[:, :0], *(found[i] for i in range(len(blocks)) if blocks[i][0] == kind)], dim=-1
            )
            for kind in range(3)
        )
        scalars, gates = (
            _activate(part, activation.acts, Irreps(str(activation.irreps_in)))
            for part, activation in ((scalars, module.act_scalars), (gates, module.act_gates))
        )
        out, start = [scalars], 0
        for block, (mul, _) in zip(_blocks(gated, parts[2]), parts[2], strict=True):
            out.append((block * gates[:, start : start + mul, None]).flatten(1))
            start += mul
        return torch.cat(out, dim=-1)


class _OfNorms(_Defined):
    """Functions of norms, whose derivatives lose digits near zero: components are 1/2 away from it."""

    def _set_operands(self, rows: int) -> None:
        super()._set_operands(rows)
        (features,) = self.operands
        away = features + np.copysign(0.5, features)
        self.operands = (away.astype(np.float32).astype(np.float64),)


class _NormActivation(_OfNorms):
    """x f(n + b) / n with the norm n of each irrep, at least epsilon; not divided if not `normalize`."""

    def _set_operands(self, rows: int) -> None:
        super()._set_operands(rows)
        if not self.module.bias:
            return
        self.names, self.spaces = ("features", "biases"), (*self.spaces, None)
        self.operands = (*self.operands, self.draw(*self.module.biases.shape))
        del self.module._parameters["biases"]  # of the copy; the given ones are a plain attribute

    def call(self, features: Tensor, biases: Tensor | None = None) -> Tensor:
        if biases is not None:
            self.module.biases = biases
        return self.module.forward(features)

    def definition(self, features: Tensor, biases: Tensor | None = None) -> Tensor:
        module, blocks = self.module, _blocks(features, self.spaces[0])
        norms = torch.cat([features[:, :0], *(block.norm(dim=-1) for block in blocks)], dim=-1)
        if module.normalize:
            norms = norms.clamp_min(module.epsilon)
        scales = module.scalar_nonlinearity(norms if biases is None else norms + biases)
        scales = (scales / norms if module.normalize else scales).split([b.shape[1] for b in blocks], dim=-1)
        scaled = [(block * scale[..., None]).flatten(1) for block, scale in zip(blocks, scales, strict=True)]
        return torch.cat([features[:, :0], *scaled], dim=-1)


class _Norm(_OfNorms):
    """The length, or its square, of each irrep."""

    def definition(self, features: Tensor) -> Tensor:
        squares = [block.square().sum(-1) for block in _blocks(features, self.spaces[0])]
        square = torch.cat([features[:, :0], *squares], dim=-1)
        return square if self.module.squared else square.sqrt()


class _Net(_Defined):
    """x -> act(x W / sqrt(h_in var_in)) sqrt(var_out) and so on; the last layer mostly without act."""

    def _set_operands(self, rows: int) -> None:
        self.layers = [part for name, part in self.module.named_children() if name.startswith("layer")]
        self.names = ("x", *(f"layer{i}.weight" for i in range(len(self.layers))))
        self.spaces = (None,) * len(self.names)
        self.space_out = Irreps([(self.module.hs[-1], "0e")] if self.module.hs else [])
        sizes = list(self.module.hs)
        if not sizes:
            raise Unknown("it has no layers")
        for part in self.layers:
            if "weight" not in part._parameters or not hasattr(part, "h_in"):
                raise Unknown("not all its layers are as it made them, with weights that are parameters")
        shapes = [(rows, sizes[0]), *(tuple(part.weight.shape) for part in self.layers)]
        self.operands = tuple(self.draw(*shape) for shape in shapes)
        for part in self.layers:
            del part._parameters["weight"]  # of the copy; the given one is a plain attribute

    def call(self, x: Tensor, *weights: Tensor) -> Tensor:
        for part, weight in zip(self.layers, weights, strict=True):
            part.weight = weight
        return self.module.forward(x)

    def definition(self, x: Tensor, *weights: Tensor) -> Tensor:
        for part, weight in zip(self.layers, weights, strict=True):
            x = x @ weight / (part.h_in * part.var_in) ** 0.5
            x = (x if part.act is None else part.act(x)) * part.var_out**0.5
        return x


class _BatchNorm(_Defined):
    """weight x / sqrt(mean |x|^2 + eps) of each irrep x, of scalars x - mean x and + bias.

    Each entry of the batch has three samples, over which the mean or largest |x|^2 is taken."""

    def _set_operands(self, rows: int) -> None:
        module, self.irreps = self.module, Irreps(str(self.module.irreps))
        self.spaces, self.space_out = (self.irreps,), self.irreps
        self.operands = (self.draw(rows, 3, self.irreps.dim),)
        given = [name for name in ("weight", "bias") if module._parameters.get(name) is not None]
        self.names, self.spaces = ("input", *given), (self.irreps, *(None for _ in given))
        for name in given:
            self.operands = (*self.operands, self.draw(*module._parameters[name].shape))
            del module._parameters[name]  # of the copy; the given ones are plain attributes
        # In training the copy forgets them, call by call.
        self.running = {
            name: value.double().clone()
            for name in ("running_mean", "running_var")
            if (value := getattr(module, name, None)) is not None
        }

    def call(self, features: Tensor, *given: Tensor) -> Tensor:
        self.module.to(features.dtype)
        for name, value in zip(self.names[1:], given, strict=True):
            setattr(self.module, name, value)
        return self.module.forward(features)

    def definition(self, features: Tensor, *given: Tensor) -> Tensor:
        module, parameters = self.module, dict(zip(self.names[1:], given, strict=True))
        is_measured = module.training or module.instance
        axes = (1,) if module.instance else (0, 1)
        out, place, scalar = [features[..., :0]], 0, 0
        parts = features.split([block.dim for block in self.irreps], dim=-1)
        for part, (mul, ir) in zip(parts, self.irreps, strict=True):
            x = part.unflatten(-1, (mul, ir.dim))
            mine, scalars = slice(place, place + mul), slice(scalar, scalar + mul)
            if ir.is_scalar():
                mean = self.running["running_mean"][scalars, None] if not is_measured else None
                x = x - (x.mean(axes, keepdim=True) if mean is None else mean)
            if is_measured:
                square = x.square().mean(-1) if module.normalization == "component" else x.square().sum(-1)
                square = square.mean(1) if module.reduce == "mean" else square.amax(1)
                square = square[:, None] if module.instance else square.mean(0)
            else:
                square = self.running["running_var"][mine]
            scale = (square + module.eps) ** -0.5
            scale = scale * parameters["weight"][mine] if "weight" in parameters else scale
            x = x * scale[..., None]
            if ir.is_scalar():
                x = x + parameters["bias"][scalars, None] if "bias" in parameters else x
                scalar += mul
            place += mul
            out.append(x.flatten(-2))
        return torch.cat(out, dim=-1)


class _Dropout(_Defined):
    """Nothing, where it is not training."""

    def _set_operands(self, rows: int) -> None:
        if self.module.training and self.module.p > 0:
            raise Unknown("it draws random numbers in training; eval() stops that")
        self.spaces, self.space_out = (Irreps(str(self.module.irreps)),), Irreps(str(self.module.irreps))
        self.operands = (self.draw(rows, self.space_out.dim),)

    def definition(self, features: Tensor) -> Tensor:
        return features.clone()


class _Extract(_Defined):
    """Blocks of the features, all outputs side by side."""

    def _set_operands(self, rows: int) -> None:
        irreps, instructions = Irreps(str(self.module.irreps_in)), self.module.instructions
        self.chosen = [range(len(irreps))[i] for blocks in instructions for i in blocks]
        # As what they are in the input, whatever the output calls them.
        self.spaces, self.space_out = (irreps,), Irreps([irreps[i] for i in self.chosen])
        self.operands = (self.draw(rows, irreps.dim),)

    def call(self, features: Tensor) -> Tensor:
        found = self.module.forward(features)
        found = (found,) if isinstance(found, Tensor) else found
        return torch.cat([features[:, :0], *found], dim=-1)

    def definition(self, features: Tensor) -> Tensor:
        slices = self.spaces[0].slices()
        return torch.cat([features[:, :0], *(features[:, slices[i]] for i in self.chosen)], dim=-1)


class _Reduced(_Defined):
    """One product after the other, each a dense table; e3nn's with its change_of_basis."""

    def _set_operands(self, rows: int) -> None:
        module = self.module
        self.spaces = tuple(Irreps(str(irreps)) for irreps in module.irreps_in)
        self.names = tuple(f"x{i}" for i in range(len(self.spaces)))
        self.space_out = Irreps(str(module.irreps_out))
        self.operands = tuple(self.draw(rows, space.dim) for space in self.spaces)
        self.tables = [_dense(plan) for plan in getattr(module, "plans", ())]

    def call(self, *xs: Tensor) -> Tensor:
        return self.module.forward(*xs)

    def definition(self, *xs: Tensor) -> Tensor:
        if not self.tables:
            out = self.module.change_of_basis.double()
            for x in xs[::-1]:  # the last axis first; rows come with the first x
                out = torch.einsum("...i,ni->n...", out, x) if x is xs[-1] else _contract_rows(out, x)
            return out
        out, *others = xs
        for table, x in zip(self.tables, others or [out.new_ones(len(out), 1)], strict=True):
            out = torch.einsum("zij,ni,nj->nz", table, out, x)
        return out


class _SymmetricContraction(_Defined):
    """Its formula with the buffers U; the species of a node is its number, over and over."""

    def _set_operands(self, rows: int) -> None:
        module = self.module
        irreps_in, irreps_out = (Irreps(str(irreps)) for irreps in (module.irreps_in, module.irreps_out))
        self.channels = module.num_channels
        self.by_dtype = {module.contractions[0].U_matrix_1.dtype: module}
        self.by_dtype.setdefault(torch.float64, _with_exact_couplings(module))
        self.spaces = (Irreps([(1, ir) for _, ir in irreps_in] * self.channels),)
        self.space_out = Irreps([(self.channels, ir) for _, ir in irreps_out])
        self.operands = (self.draw(rows, self.spaces[0].dim),)
        self.species = torch.arange(rows) % module.contractions[0].weights_max.shape[0]

    def call(self, features: Tensor) -> Tensor:
        if features.dtype not in self.by_dtype:
            self.by_dtype[features.dtype] = copy.deepcopy(self.module).to(features.dtype)
        module = self.by_dtype[features.dtype]
        return module.forward(features.unflatten(1, (self.channels, -1)), self.species)

    def definition(self, features: Tensor) -> Tensor:
        x = features.unflatten(1, (self.channels, -1))
        blocks = []
        for contraction in self.by_dtype[torch.float64].contractions:
            total = 0
            weights = contraction.ascending_weights()
            for nu, (u, weight) in enumerate(zip(contraction.u_matrices(), weights, strict=True), start=1):
                part = u.double().reshape(-1, *[x.shape[2]] * nu, u.shape[-1])
                part = torch.einsum("m...k,nkc->ncm...k", part, weight.detach().double()[self.species])
                part = part.sum(-1)
                for _ in range(nu):
                    part = torch.einsum("nc...i,nci->nc...", part, x)
                total = total + part
            blocks.append(total.flatten(1))
        return torch.cat(blocks, dim=1)


def _with_exact_couplings(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64; couplings that are clebsch's own, rounded, are put back as they were."""
    double = copy.deepcopy(module).double()
    coupling = Irreps([(1, ir) for _, ir in Irreps(str(module.irreps_in))])
    for (_, ir), ours, rounded in zip(
        Irreps(str(module.irreps_out)), double.contractions, module.contractions, strict=True
    ):
        powers = coupled_powers(coupling, ir, module.correlation)
        for u, exact, before in zip(ours.u_matrices(), powers, rounded.u_matrices(), strict=True):
            if exact.size == u.numel() and torch.equal(
                torch.tensor(exact, dtype=before.dtype).reshape(u.shape), before
            ):
                u.copy_(torch.tensor(exact).reshape(u.shape))
    double._build_table()
    return double


def _contract_rows(table: Tensor, x: Tensor) -> Tensor:
    """The last axis of table (rows, ..., dim) with x (rows, dim)."""
    return (table * x.reshape(len(x), *[1] * (table.dim() - 2), x.shape[-1])).sum(-1)


def _dense(plan: ProductPlan) -> Tensor:
    """The product's table (out, in1, in2); it has no weights."""
    form = terms(plan)
    table = torch.zeros(form.dims[:3], dtype=torch.float64)
    index = tuple(map(torch.from_numpy, (form.out, form.in1, form.in2)))
    return table.index_put_(index, torch.from_numpy(form.value), accumulate=True)


DEFINED: dict[str, type[Problem]] = {
    "Activation": _Activation,
    "Gate": _Gate,
    "NormActivation": _NormActivation,
    "Norm": _Norm,
    "FullyConnectedNet": _Net,
    "BatchNorm": _BatchNorm,
    "Dropout": _Dropout,
    "Extract": _Extract,
    "ReducedTensorProducts": _Reduced,
    "SymmetricContraction": _SymmetricContraction,
}
