"""Equivariant linear layer: mixes the copies of each irrep, with e3nn 0.6's signature, parameters and
numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clebsch.algebra.plan import Path, ProductPlan
from clebsch.backend import MAX_DEGREE, MAX_MULTIPLICITY
from clebsch.o3.irreps import Irreps
from clebsch.ops.dispatch import require_dense, suits_kernels
from clebsch.ops.linear import mix_rows
from clebsch.ops.tensor_product import multiply_rows, plan_sizes

__all__ = ["Linear", "LinearInstruction"]


class LinearInstruction(NamedTuple):
    """One block of weights as e3nn lists it: i_in = -1 for a bias; path_weight multiplies the weights."""

    i_in: int
    i_out: int
    path_shape: tuple[int, ...]
    path_weight: float


class LinearSlices(NamedTuple):
    """The part of a flat weight that belongs to an instruction, and the shape to view it in."""

    slice_1D: slice
    shape_2D: tuple[int, ...]


class _Product(NamedTuple):
    """One matrix product: copies `mul_in` of an irrep from `start` on, times weights from `offset` on."""

    start: int
    mul_in: int
    offset: int
    coefficient: float


class _Output(NamedTuple):
    """One block of the output: `mul` copies of `width` components, the products and the bias that add up to
    it.
    """

    mul: int
    width: int
    products: tuple[_Product, ...]
    bias_offset: int | None


class Linear(torch.nn.Module):
    """out_k[w] = sum over blocks i of the same irrep and their copies u: c_k W_ik[u, w] x_i[u], plus a bias.

    Signature, attributes, state_dict and numbers are those of ``e3nn.o3.Linear`` 0.6: c_k is 1 over the root
    of the number of copies summed (times f_in), so it depends on how irreps are partitioned; simplify them
    first to merge.

    Args:
        irreps_in, irreps_out: in any form that `Irreps` reads.
        f_in, f_out: size of an additional axis before the last that is mixed too; both or neither.
        internal_weights: whether weights and biases are parameters of this module; default `shared_weights`.
        shared_weights: whether one weight serves all rows (default), or each row has its own.
        instructions: pairs (i_in, i_out) of blocks to connect; all of equal irreps if None.
        biases: one bool per block of irreps_out, or True for all blocks of 0e.
        path_normalization: "element", or "path" to weigh every block equally.

    Raises:
        IndexError, ValueError: naming the instruction or argument that does not fit.
    """

    def __init__(
        self,
        irreps_in: Any,
        irreps_out: Any,
        *,
        f_in: int | None = None,
        f_out: int | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        instructions: Iterable[Sequence[int]] | None = None,
        biases: bool | Sequence[bool] | None = False,
        path_normalization: str = "element",
        _optimize_einsums: bool | None = None,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        if (f_in is None) != (f_out is None):
            raise ValueError(f"Linear: give both of f_in and f_out or neither, got {f_in} and {f_out}")
        for name, size in (("f_in", f_in), ("f_out", f_out)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"Linear: {name} must be an integer >= 1, got {size!r}")
        if path_normalization not in ("element", "path"):
            raise ValueError(
                f"Linear: path_normalization must be 'element' or 'path', got {path_normalization!r}"
            )
        self.f_in, self.f_out = f_in, f_out
        self._axes = () if f_in is None else (f_in, f_out)
        self._axes_out = self._axes[1:]
        pairs = self._pairs(instructions)
        self.instructions = [
            *self._weighted(pairs, path_normalization),
            *(
                LinearInstruction(-1, i, (self.irreps_out[i].dim,), 1.0)
                for i, has_bias in enumerate(self._biases(biases))
                if has_bias
            ),
        ]
        self.weight_numel = sum(math.prod(ins.path_shape) for ins in self.instructions if ins.i_in >= 0)
        self.bias_numel = sum(math.prod(ins.path_shape) for ins in self.instructions if ins.i_in < 0)
        self._dim_in, self._dim_out = self.irreps_in.dim, self.irreps_out.dim
        self._outputs = self._arrange()
        coefficients = {product.coefficient for output in self._outputs for product in output.products}
        # One for all products, if so: then one small product scales all weights.
        self._coefficient = coefficients.pop() if len(coefficients) == 1 else None
        self._sizes = plan_sizes(self._make_plan()) if f_in is None and self._fits_kernels() else None
        self._biased = tuple(ins.i_out for ins in self.instructions if ins.i_in < 0 and ins.path_shape[0])
        self._set_weights(internal_weights, shared_weights)
        self.register_buffer("output_mask", self._make_output_mask())

    def _fits_kernels(self) -> bool:
        blocks = (*self.irreps_in, *self.irreps_out)
        return all(block.ir.l <= MAX_DEGREE and block.mul <= MAX_MULTIPLICITY for block in blocks)

    def _make_plan(self) -> ProductPlan:
        """The layer as a product with y = 1: the coupling of an irrep with a scalar is 1 / sqrt(2l+1)."""
        paths = (
            Path(
                ins.i_in, 0, ins.i_out, "uvw", True, ins.path_weight * self.irreps_in[ins.i_in].ir.dim ** 0.5
            )
            for ins in self.instructions
            if ins.i_in >= 0
        )
        return ProductPlan(self.irreps_in, Irreps("1x0e"), self.irreps_out, tuple(paths))

    def _pairs(self, instructions: Iterable[Sequence[int]] | None) -> list[tuple[int, int]]:
        if instructions is None:
            return [
                (i_in, i_out)
                for i_in, (_, ir_in) in enumerate(self.irreps_in)
                for i_out, (_, ir_out) in enumerate(self.irreps_out)
                if ir_in == ir_out
            ]
        try:
            pairs = [tuple(map(operator.index, (i_in, i_out))) for i_in, i_out in instructions]
        except (TypeError, ValueError):
            raise ValueError(
                f"Linear: instructions must be pairs (i_in, i_out) of integers, got {instructions!r}"
            ) from None
        for number, (i_in, i_out) in enumerate(pairs):
            label = f"instructions[{number}] = ({i_in}, {i_out})"
            for name, i, irreps in (("in", i_in, self.irreps_in), ("out", i_out, self.irreps_out)):
                if not 0 <= i < len(irreps):
                    raise IndexError(
                        f"Linear: {label}: i_{name} must be >= 0 and < {len(irreps)}, the number of blocks "
                        f"of irreps_{name} = '{irreps}'"
                    )
            ir_in, ir_out = self.irreps_in[i_in].ir, self.irreps_out[i_out].ir
            if ir_in != ir_out:
                raise ValueError(f"Linear: {label}: cannot connect {ir_in} to {ir_out}: not the same irrep")
        return pairs

    def _weighted(self, pairs: list[tuple[int, int]], path_normalization: str) -> list[LinearInstruction]:
        def summed(i_in: int, i_out: int) -> int:
            sources = [source for source, target in pairs if target == i_out]
            if path_normalization == "path":
                sources = [i_in] * len(sources)
            return sum(self.irreps_in[source].mul for source in sources) * (self.f_in or 1)

        return [
            LinearInstruction(
                i_in,
                i_out,
                (self.irreps_in[i_in].mul, self.irreps_out[i_out].mul),
                (summed(i_in, i_out) or 1.0) ** -0.5,
            )
            for i_in, i_out in pairs
        ]

    def _biases(self, biases: bool | Sequence[bool] | None) -> list[bool]:
        scalar = [ir.is_scalar() for _, ir in self.irreps_out]
        if biases is None or isinstance(biases, bool):
            return [bool(biases) and is_scalar for is_scalar in scalar]
        if isinstance(biases, str) or not isinstance(biases, Iterable):
            raise TypeError(
                f"Linear: biases must be a bool or one for each block of irreps_out, got {biases!r}"
            )
        biases = list(biases)
        if len(biases) != len(scalar):
            raise ValueError(
                f"Linear: biases must have one entry per block of irreps_out, {len(scalar)} in all, "
                f"got {len(biases)}"
            )
        for i, (has_bias, is_scalar) in enumerate(zip(biases, scalar, strict=True)):
            if has_bias and not is_scalar:
                raise ValueError(
                    f"Linear: biases[{i}] must be False: block {i} of irreps_out, {self.irreps_out[i]}, "
                    "is not 0e"
                )
        return biases

    def _arrange(self) -> tuple[_Output, ...]:
        """The matrix products of each block of the output.

        Neighbouring input blocks whose weights are neighbours too are one matrix product: so it is where a
        tensor product's sorted output, with several blocks of one irrep, is mixed into one block.
        """
        starts = [part.start for part in self.irreps_in.slices()]
        products: list[list[_Product]] = [[] for _ in self.irreps_out]
        biases: list[int | None] = [None] * len(self.irreps_out)
        offset = bias_offset = 0
        for ins in self.instructions:
            if ins.i_in < 0:
                biases[ins.i_out] = bias_offset
                bias_offset += math.prod(ins.path_shape)
                continue
            mul_in, mul_out = ins.path_shape
            product = _Product(starts[ins.i_in], mul_in, offset, ins.path_weight)
            offset += mul_in * mul_out
            if mul_in * mul_out == 0:
                continue
            listed = products[ins.i_out]
            if listed and self.f_in is None:
                last = listed[-1]
                width = self.irreps_in[ins.i_in].ir.dim
                if (
                    last.start + last.mul_in * width == product.start
                    and last.offset + last.mul_in * mul_out == product.offset
                    and last.coefficient == product.coefficient
                ):
                    listed[-1] = last._replace(mul_in=last.mul_in + mul_in)
                    continue
            listed.append(product)
        return tuple(
            _Output(mul, ir.dim, tuple(listed), bias)
            for (mul, ir), listed, bias in zip(self.irreps_out, products, biases, strict=True)
            if mul > 0
        )

    def _set_weights(self, internal_weights: bool | None, shared_weights: bool | None) -> None:
        if shared_weights is None:
            shared_weights = True
        if internal_weights is None:
            internal_weights = shared_weights
        if internal_weights and not shared_weights:
            raise ValueError(
                "Linear: internal_weights=True needs shared_weights=True: weights that the module "
                "holds are the same for every row"
            )
        self.internal_weights, self.shared_weights = internal_weights, shared_weights
        if internal_weights and self.weight_numel > 0:
            self.weight = torch.nn.Parameter(torch.randn(*self._axes, self.weight_numel))
        else:
            self.register_buffer("weight", torch.empty(0))
        if internal_weights and self.bias_numel > 0:
            self.bias = torch.nn.Parameter(torch.zeros(*self._axes_out, self.bias_numel))
        else:
            self.register_buffer("bias", torch.empty(0))

    def _make_output_mask(self) -> Tensor:
        mask = torch.zeros(self._dim_out)
        slices = self.irreps_out.slices()
        for ins in self.instructions:
            if 0 not in ins.path_shape:
                mask[slices[ins.i_out]] = 1.0
        return mask

    def forward(self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """features (..., [f_in,] irreps_in.dim) to (..., [f_out,] irreps_out.dim).

        weight: ([f_in, f_out,] weight_numel), or (..., the same) where weights are not shared; bias:
        ([f_out,] bias_numel), or (..., the same). Where weights are shared, either may be flat, or have a 1
        in front. Both must be given if the module holds none. ValueError for another shape or device,
        TypeError for no tensor or another dtype than that of the weight.
        """
        self._check_features(features)
        count = len(self._axes_out) + 1
        weight = self._given("weight", weight, self.weight, (*self._axes, self.weight_numel), features)
        bias = self._given("bias", bias, self.bias, (*self._axes_out, self.bias_numel), features)
        batch = features.shape[:-count]
        if not self.shared_weights and self.weight_numel > 0:
            batch, features, weight = self._broadcast(features, weight)
        x = features if len(batch) == 1 else features.reshape(math.prod(batch), *features.shape[-count:])
        if bias.dim() > count:
            own = bias.shape[bias.dim() - count :]
            bias = bias.expand(*batch, *own).reshape(x.shape[0], *own)
        per_row = weight.dim() == len(self._axes) + 2
        if self._sizes is not None and suits_kernels("tensor_product" if per_row else "linear", x):
            out = self._compiled(x, weight, bias, per_row)
        else:
            out = self._composed(x, weight, bias, per_row)
        return out if len(batch) == 1 else out.reshape(*batch, *self._axes_out, self._dim_out)

    def _compiled(self, x: Tensor, weight: Tensor, bias: Tensor, per_row: bool) -> Tensor:
        """By the compiled kernels; weights of each row as those of a product with y = 1."""
        if self.weight_numel == 0:
            weight = x.new_empty(0)
        if not per_row:
            return mix_rows(x, weight, bias if self._biased else x.new_empty(0), self._sizes, self._biased)
        out = multiply_rows(x, x.new_ones(1).expand(x.shape[0], 1), weight, self._sizes)
        return out + self._bias_rows(bias) if self._biased else out

    def _bias_rows(self, bias: Tensor) -> Tensor:
        """The bias as rows of the output."""
        parts, start = [], 0
        for i, (mul, ir) in enumerate(self.irreps_out):
            if i in self._biased:
                parts.append(bias.narrow(-1, start, mul))
                start += mul
            else:
                parts.append(bias.new_zeros(*bias.shape[:-1], mul * ir.dim))
        return torch.cat(parts, dim=-1)

    def _composed(self, x: Tensor, weight: Tensor, bias: Tensor, per_row: bool) -> Tensor:
        """By torch's matrix products: types and devices that have no kernel, autocast, transforms, f_in."""
        blocks = self._per_row(x, weight) if per_row else self._shared(x, weight)
        parts = [
            self._complete(x, block, output, bias)
            for block, output in zip(blocks, self._outputs, strict=True)
        ]
        if not parts:
            return x.new_zeros(x.shape[0], *self._axes_out, 0)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def _check_features(self, features: Any) -> None:
        if not isinstance(features, Tensor):
            raise TypeError(f"Linear: features must be a tensor, got {type(features).__name__}")
        require_dense("Linear", "features", features)
        trailing = (*self._axes[:1], self._dim_in)
        if features.dim() < len(trailing) or tuple(features.shape[-len(trailing) :]) != trailing:
            raise ValueError(
                f"Linear: features must have shape (..., {', '.join(map(str, trailing))}), "
                f"got {tuple(features.shape)}"
            )

    def _given(
        self, name: str, value: Tensor | None, own: Tensor, shape: tuple[int, ...], features: Tensor
    ) -> Tensor:
        """The weight or bias to use: the given one or the module's own, checked."""
        value = self._given_or_own(name, value, own, shape)
        if value.device != features.device and shape[-1] > 0:
            raise ValueError(
                f"Linear: {name} must be on the device of features, {features.device}, got {value.device}"
            )
        if value.dtype != features.dtype and shape[-1] > 0:
            if not torch.is_autocast_enabled(features.device.type):
                wanted, got = (str(t.dtype).removeprefix("torch.") for t in (value, features))
                raise TypeError(f"Linear: features must have the dtype of {name}, {wanted}, got {got}")
        return value

    def _given_or_own(self, name: str, value: Tensor | None, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        if value is None:
            if shape[-1] > 0 and not self.internal_weights:
                raise ValueError(
                    f"Linear: {name} must be given: the module needs {shape[-1]} numbers per row and "
                    "internal_weights=False"
                )
            return own
        if not isinstance(value, Tensor):
            raise TypeError(f"Linear: {name} must be a tensor, got {type(value).__name__}")
        require_dense("Linear", name, value)
        if self.shared_weights and value.shape in ((math.prod(shape),), (1, *shape)):
            return value.reshape(shape)
        leading = value.dim() - len(shape)
        if leading < 0 or tuple(value.shape[leading:]) != shape or (leading and self.shared_weights):
            dots = "" if self.shared_weights else "..., "
            comma = "," if self.shared_weights and len(shape) == 1 else ""
            raise ValueError(
                f"Linear: {name} must have shape ({dots}{', '.join(map(str, shape))}{comma}), "
                f"got {tuple(value.shape)}"
            )
        return value

    def _broadcast(self, features: Tensor, weight: Tensor) -> tuple[torch.Size, Tensor, Tensor]:
        """Features over the common leading dimensions; the weight alike, over one axis or none (one row)."""
        feature_axes, weight_axes = len(self._axes_out) + 1, len(self._axes) + 1
        leading = weight.shape[:-weight_axes]
        own = weight.shape[len(leading) :]
        try:
            batch = torch.broadcast_shapes(features.shape[:-feature_axes], leading)
        except RuntimeError:
            raise ValueError(
                "Linear: the leading dimensions of features and weight must broadcast, "
                f"got {tuple(features.shape[:-feature_axes])} and {tuple(leading)}"
            ) from None
        features = features.expand(*batch, *features.shape[features.dim() - feature_axes :])
        if math.prod(leading) == 1:
            return batch, features, weight.reshape(own)
        return batch, features, weight.expand(*batch, *own).reshape(math.prod(batch), *own)

    def _shared(self, x: Tensor, weight: Tensor) -> list[Tensor | None]:
        """Each block of the output, (rows, [f_out,] mul * width), or None for zero.

        A block of width > 1 lies with its components innermost: these are brought out of the way of the
        matrix product and back, at the price of one strided copy each way.
        """
        if self._coefficient is not None:
            weight = weight * self._coefficient
        rows = x.shape[0]
        columns: dict[tuple[int, int], Tensor] = {}
        blocks = []
        for output in self._outputs:
            total = None
            for product in output.products:
                where = product.start, product.mul_in
                if where not in columns:
                    columns[where] = self._columns(x, product, output.width)
                matrix = self._matrix(weight, product, output.mul)
                if self._coefficient is None:
                    matrix = matrix * product.coefficient
                column = columns[where]
                total = column @ matrix if total is None else torch.addmm(total, column, matrix)
            if total is not None and output.width > 1:
                total = total.view(rows, output.width, self.f_out or 1, output.mul).permute(0, 2, 3, 1)
            if total is not None and (output.width > 1 or self.f_out is not None):
                total = total.reshape(rows, *self._axes_out, output.mul * output.width)
            blocks.append(total)
        return blocks

    def _columns(self, x: Tensor, product: _Product, width: int) -> Tensor:
        """The copies that a product mixes as the last axis of a matrix: (rows * width, [f_in *] mul_in)."""
        part = x.narrow(-1, product.start, product.mul_in * width)
        if self.f_in is None:
            if width == 1:
                return part
            part = part.view(x.shape[0], product.mul_in, width).transpose(1, 2)
            return part.reshape(x.shape[0] * width, product.mul_in)
        part = part.view(x.shape[0], self.f_in, product.mul_in, width).permute(0, 3, 1, 2)
        return part.reshape(x.shape[0] * width, self.f_in * product.mul_in)

    def _matrix(self, weight: Tensor, product: _Product, mul_out: int) -> Tensor:
        """The weights of a product, ([f_in *] mul_in, [f_out *] mul_out)."""
        matrix = weight.narrow(-1, product.offset, product.mul_in * mul_out)
        if self.f_in is None:
            return matrix.view(product.mul_in, mul_out)
        matrix = matrix.view(self.f_in, self.f_out, product.mul_in, mul_out)
        return matrix.transpose(1, 2).reshape(self.f_in * product.mul_in, self.f_out * mul_out)

    def _per_row(self, x: Tensor, weight: Tensor) -> list[Tensor | None]:
        """As `_shared`, for a weight (rows, [f_in, f_out,] weight_numel)."""
        equation = "nuw,nui->nwi" if self.f_in is None else "nxyuw,nxui->nywi"
        blocks = []
        for output in self._outputs:
            total = None
            for product in output.products:
                part = x.narrow(-1, product.start, product.mul_in * output.width)
                matrix = weight.narrow(-1, product.offset, product.mul_in * output.mul)
                term = product.coefficient * torch.einsum(
                    equation,
                    matrix.unflatten(-1, (product.mul_in, output.mul)),
                    part.unflatten(-1, (product.mul_in, output.width)),
                )
                total = term if total is None else total + term
            blocks.append(None if total is None else total.flatten(-2))
        return blocks

    def _complete(self, x: Tensor, block: Tensor | None, output: _Output, bias: Tensor) -> Tensor:
        """The block with its bias; zeros where nothing leads to it."""
        if output.bias_offset is not None:
            own = bias.narrow(-1, output.bias_offset, output.mul)
            if block is not None:
                return block + own
            return own.expand(x.shape[0], *self._axes_out, output.mul)
        if block is not None:
            return block
        return x.new_zeros(x.shape[0], *self._axes_out, output.mul * output.width)

    @property
    def weight_index_slices(self) -> list[LinearSlices]:
        """Where the numbers of every instruction lie, in its weight or, for the last of them, in its bias
        counted on; e3nn 0.6's.
        """
        slices, start = [], 0
        for ins in self.instructions:
            stop = start + math.prod(ins.path_shape)
            slices.append(LinearSlices(slice(start, stop), ins.path_shape))
            start = stop
        return slices

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """A view of the weights of one instruction: (..., *path_shape). ValueError if it is a bias."""
        if self.instructions[instruction].i_in < 0:
            raise ValueError(f"Linear: instruction {instruction} is a bias and has no weights")
        if weight is None:
            if not self.internal_weights:
                raise ValueError("Linear: weight must be given: internal_weights=False")
            weight = self.weight
        offset = sum(math.prod(ins.path_shape) for ins in self.instructions[:instruction])
        shape = self.instructions[instruction].path_shape
        return weight.narrow(-1, offset, math.prod(shape)).view(*weight.shape[:-1], *shape)

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False) -> Iterator[Any]:
        """Views of the weights of every instruction, or (index, instruction, view) if asked for."""
        for i, ins in enumerate(self.instructions):
            if ins.i_in >= 0:
                view = self.weight_view_for_instruction(i, weight)
                yield (i, ins, view) if yield_instruction else view

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | {self.weight_numel} weights)"
