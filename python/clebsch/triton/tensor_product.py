"""The operators of products over rows and graphs, by Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clebsch.algebra.plan import ProductPlan

from . import tensor_product_channels as channels
from . import tensor_product_modes as modes
from .checks import contiguous_rows, require, require_rows
from .launch import launch, tiles
from .source import MOST_TILES, Source
from .sums import sender_sums

__all__ = [
    "Product",
    "convolution",
    "convolution_backward",
    "convolution_double_backward",
    "sources",
    "tensor_product",
    "tensor_product_backward",
    "tensor_product_double_backward",
]

WORK_SPACE = 256 << 20
"""Bytes that gradients of edges may take before they are summed for their senders: windows of edges."""

PIECES = 128
"""Into how many sums the gradient of shared weights is split."""


class Call(NamedTuple):
    """What the source of a call depends on. tangents: None, or which of ax, ay, aw there are."""

    plan: str
    dtype: str
    graph: bool
    shared: bool
    tangents: tuple[bool, bool, bool] | None = None


@lru_cache(maxsize=1024)
def forward_sources(call: Call) -> list[Source]:
    """The kernels that make `out`."""
    plan = ProductPlan.parse(call.plan)
    fixed = {"graph": call.graph, "tangents": call.tangents}
    if channels.serves(plan):
        return channels.forward(plan, call.dtype, **fixed)
    return modes.contraction(plan, call.dtype, "out", **fixed)


@lru_cache(maxsize=1024)
def together_sources(call: Call, needs: tuple[bool, bool, bool]) -> list[Source]:
    """The kernels that make gx, gy and gw at a time, where there are any."""
    plan = ProductPlan.parse(call.plan)
    if not any(needs) or not channels.serves(plan):
        return []
    return channels.backward(plan, call.dtype, graph=call.graph, needs=needs, tangents=call.tangents)


@lru_cache(maxsize=1024)
def target_sources(call: Call, target: str) -> list[Source]:
    """The kernels that make one of gx, gy and gw."""
    plan = ProductPlan.parse(call.plan)
    fixed = {"graph": call.graph, "shared": call.shared, "tangents": call.tangents}
    return modes.contraction(plan, call.dtype, target, **fixed)


@lru_cache(maxsize=1024)
def filled(plan: str, operand: str) -> bool:
    """Whether some path reaches every number of a result ("x", "y", "weight" or "out")."""
    parsed = ProductPlan.parse(plan)
    irreps = {"x": parsed.irreps_in1, "y": parsed.irreps_in2, "out": parsed.irreps_out}
    reached = [
        path
        for path, shape in zip(parsed.paths, parsed.path_shapes, strict=True)
        if 0 not in shape and all(block.mul > 0 for block in parsed.blocks(path))
    ]
    if operand == "weight":
        return True  # weights of paths that are left out are none
    index = {"x": "i_in1", "y": "i_in2", "out": "i_out"}[operand]
    blocks = {getattr(path, index) for path in reached}
    # Pairs u < v leave copies without a partner, which the kernels fill with zeros all the same.
    return all(i in blocks or mul == 0 for i, (mul, _) in enumerate(irreps[operand]))


class Product:
    """Operands as kernels take them, and results."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, order: Tensor | None, plan: str) -> None:
        self.noun, self.plan, self.like = "tensor_product" if order is None else "convolution", plan, x
        self.parsed = ProductPlan.parse(plan)
        self.widths = {
            "x": self.parsed.irreps_in1.dim,
            "y": self.parsed.irreps_in2.dim,
            "weight": self.parsed.weight_numel,
            "grad": self.parsed.irreps_out.dim,
        }
        for name, operand in (("x", x), ("y", y), ("weight", weight)):
            require_rows(self.noun, name, operand, x, "x", self.widths[name], name == "weight")
        self.nodes, self.rows = x.shape[0], y.shape[0]
        self.shared = weight.dim() == 1
        self.given: dict[str, Any] = {}
        for name, operand in (("x", x), ("y", y), ("weight", weight)):
            self.give(name, operand)
        matches = self.shared or weight.shape[0] == self.rows
        require(matches, self.noun, f"weight must have {self.rows} rows, got {weight.shape[0]}")
        if order is None:
            sentence = f"x and y must have the same number of rows, got {self.nodes} and {self.rows}"
            require(self.nodes == self.rows, self.noun, sentence)
        else:
            fits = order.dtype == torch.int64 and order.shape == (6 * self.rows + 3 * self.nodes + 5,)
            sentence = f"order must come from graph_order with {self.rows} edges and {self.nodes} nodes"
            require(fits and order.device == x.device, self.noun, sentence)
            self.given |= {"order": order.contiguous(), "nodes": self.nodes, "edges": self.rows}
        self.owners = self.rows if order is None else self.nodes

    def give_grad(self, grad: Tensor) -> None:
        """Take the cotangent of the output."""
        require_rows(self.noun, "grad", grad, self.like, "x", self.widths["grad"])
        sentence = f"grad must have {self.owners} rows, got {grad.shape[0]}"
        require(grad.shape[0] == self.owners, self.noun, sentence)
        self.give("grad", grad)

    def give_tangent(self, name: str, of: str, tangent: Tensor) -> None:
        """Take a tangent of an operand."""
        require_rows(self.noun, name, tangent, self.like, "x", self.widths[of], True)
        same = tangent.shape == self.given[of].shape
        require(same, self.noun, f"{name} must have the shape of its operand")
        self.give(name, tangent)

    @property
    def graph(self) -> bool:
        """Whether rows are the edges of a graph."""
        return "order" in self.given

    def call(self, tangents: Sequence[Tensor | None] | None = None) -> Call:
        """Names the source."""
        dtype = str(self.like.dtype).removeprefix("torch.")
        given = None if tangents is None else tuple(tangent is not None for tangent in tangents)
        return Call(self.plan, dtype, self.graph, self.shared, given)

    def give(self, name: str, operand: Tensor) -> None:
        """Take an operand, or a result: rows of contiguous numbers, or one row for all."""
        operand = contiguous_rows(operand)
        self.given |= {name: operand, f"{name}_stride": operand.stride(0) if operand.dim() == 2 else 0}

    def fresh(self, shape: Sequence[int], operand: str) -> Tensor:
        """A result, zero where no path would write."""
        return self.like.new_empty(shape) if filled(self.plan, operand) else self.like.new_zeros(shape)

    def part(self, shape: Sequence[int], is_filled: bool = True) -> Tensor:
        """Work space for parts of sums, 32 bits a number at least."""
        dtype = self.like.dtype if self.like.dtype == torch.float64 else torch.float32
        return (self.like.new_empty if is_filled else self.like.new_zeros)(shape, dtype=dtype)

    def run(self, sources: Sequence[Source], owners: int, **more: Any) -> None:
        """Kernels one after another, on the operands and results and what else they take."""
        for source in sources:
            launch(source, owners, self.given | more)

    def forward(self, tangents: Sequence[Tensor | None] | None = None) -> Tensor:
        """out, or the derivative of it along the tangents."""
        if tangents is not None and all(tangent is None for tangent in tangents):
            return self.like.new_zeros((self.owners, self.widths["grad"]))
        out = self.fresh((self.owners, self.widths["grad"]), "out")
        self.give("out", out)
        self.run(forward_sources(self.call(tangents)), self.owners)
        return out

    def backward(
        self, needs: int, tangents: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """gx, gy and gw, empty where their bit is not set."""
        wanted = tuple(bool(needs >> i & 1) for i in range(3))
        call = self.call(tangents)
        names = ("x", "y", "weight")
        results = {name: self.like.new_empty(0) for name in names}
        if tangents is not None and all(tangent is None for tangent in tangents):
            for name, wants in zip(names, wanted, strict=True):
                if wants:
                    results[name] = torch.zeros_like(self.given[name], memory_format=torch.contiguous_format)
            return tuple(results.values())
        for name, wants in zip(names, wanted, strict=True):
            if wants:
                results[name] = self.fresh(self.given[name].shape, name)
        by_edge = (wanted[0], wanted[1], wanted[2] and not self.shared)
        left = wanted
        together = together_sources(call, by_edge)
        if together:
            self.together(together, by_edge, results)
            left = (False, False, wanted[2] and self.shared)
        for name, target, wants in zip(names, ("gx", "gy", "gw"), left, strict=True):
            if wants:
                self.alone(target, target_sources(call, target), results, name)
        return tuple(results.values())

    def together(
        self, sources: Sequence[Source], needs: tuple[bool, bool, bool], results: dict[str, Tensor]
    ) -> None:
        """The kernels of tensor_product_channels, by windows of edges."""
        gx, gy, gw = needs
        if gw:
            self.give("gw", results["weight"])
        pieces, counts = results["y"], [tiles(source, self.given) for source in sources]
        if gy and max(counts) > MOST_TILES:  # pieces are found by one axis of the grid
            raise NotImplementedError(
                f"{self.noun}: the gradient of y takes {max(counts)} tiles of channels, and a Triton kernel "
                f"makes it of at most {MOST_TILES}: split the blocks of x into plans of their own, or use "
                "tensors on the CPU"
            )
        if gy and sum(counts) > 1:
            pieces = self.part((sum(counts), *results["y"].shape))
        if gy:
            self.give("gy", pieces if pieces.dim() == 2 else pieces[0])
            self.given["gy_piece"] = self.rows * results["y"].shape[1]
        for first, last in self.windows(gx):
            if gx:
                parts = results["x"]
                if self.graph:
                    parts = self.part((last - first, results["x"].shape[1]), filled(self.plan, "x"))
                self.give("gx", parts)
            piece = 0
            for source, count in zip(sources, counts, strict=True):
                self.run([source], self.owners, first=first, last=last, piece=piece)
                piece += count
            if gx and self.graph:
                self.add_up(parts, results["x"], first, last)
        if pieces.dim() == 3:
            results["y"].copy_(pieces.sum(0))

    def windows(self, gx: bool) -> list[tuple[int, int]]:
        """Ranges of positions whose gradients of x fit in the work space."""
        if not (self.graph and gx):
            return [(0, self.rows)]
        width = max(self.like.shape[1] * max(self.like.element_size(), 4), 1)  # parts have 32 bits or more
        step = max(WORK_SPACE // width, 1)
        return [(first, min(first + step, self.rows)) for first in range(0, max(self.rows, 1), step)]

    def add_up(self, parts: Tensor, gx: Tensor, first: int, last: int) -> None:
        """Each sender's sum over a window."""
        source = sender_sums(self.parsed, self.call().dtype)
        rows = {"parts": parts, "parts_stride": parts.stride(0), "out": gx, "out_stride": gx.stride(0)}
        self.run([source], self.nodes, **rows, first=first, last=last, adds=int(first > 0))

    def alone(self, target: str, sources: Sequence[Source], results: dict[str, Tensor], name: str) -> None:
        """The kernels of tensor_product_modes for one result."""
        if target == "gw" and self.shared:
            count = max(1, -(-self.rows // PIECES))
            owners = max(1, -(-self.rows // count))
            pieces = self.part((owners, *results[name].shape))
            self.give("gw", pieces)
            self.run(sources, owners, count=count, rows=self.rows)
            results[name] = pieces.sum(0).to(self.like.dtype)
            return
        self.give(target, results[name])
        self.run(sources, self.nodes if target == "gx" else self.rows)


def sources(plan: ProductPlan, dtype: str = "float32", *, graph: bool, shared: bool) -> list[Source]:
    """The kernels of `plan`, for people: forward, backward with all gradients, and both along tangents of all
    operands, which is what is differentiated twice."""
    found: list[Source] = []
    for tangents in (None, (True, True, True)):
        call = Call(str(plan), dtype, graph, shared, tangents)
        found += forward_sources(call) + together_sources(call, (True, True, not shared))
        for target in ("gx", "gy", "gw"):
            if not channels.serves(plan) or (target == "gw" and shared):
                found += target_sources(call, target)
    return [*found, sender_sums(plan, dtype)] if graph and channels.serves(plan) else found


def tensor_product(x: Tensor, y: Tensor, weight: Tensor, plan: str) -> Tensor:
    """clebsch::tensor_product"""
    return Product(x, y, weight, None, plan).forward()


def tensor_product_backward(grad, x, y, weight, plan, needs):
    """clebsch::tensor_product_backward"""
    return _backward(grad, x, y, weight, None, plan, needs)


def tensor_product_double_backward(ax, ay, aw, grad, x, y, weight, plan, needs):
    """clebsch::tensor_product_double_backward"""
    return _double_backward((ax, ay, aw), grad, x, y, weight, None, plan, needs)


def convolution(x: Tensor, y: Tensor, weight: Tensor, order: Tensor, plan: str) -> Tensor:
    """clebsch::convolution"""
    return Product(x, y, weight, order, plan).forward()


def convolution_backward(grad, x, y, weight, order, plan, needs):
    """clebsch::convolution_backward"""
    return _backward(grad, x, y, weight, order, plan, needs)


def convolution_double_backward(ax, ay, aw, grad, x, y, weight, order, plan, needs):
    """clebsch::convolution_double_backward"""
    return _double_backward((ax, ay, aw), grad, x, y, weight, order, plan, needs)


def _backward(grad, x, y, weight, order, plan, needs):
    product = Product(x, y, weight, order, plan)
    product.give_grad(grad)
    return product.backward(needs)


def _double_backward(tangents, grad, x, y, weight, order, plan, needs):
    product = Product(x, y, weight, order, plan)
    product.give_grad(grad)
    for name, of, tangent in zip(("ax", "ay", "aw"), ("x", "y", "weight"), tangents, strict=True):
        if tangent is not None:
            product.give_tangent(name, of, tangent)
    along = product.forward(tangents) if needs & 1 else x.new_empty(0)
    return (along, *product.backward(needs >> 1, tangents))
