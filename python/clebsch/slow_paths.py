"""Which kernel runs a plan, in words, and why it is not a quicker one: docs/kernels.md as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from clebsch import backend
from clebsch.algebra.irreps import Irreps
from clebsch.algebra.plan import Path, ProductPlan
from clebsch.ops.tensor_product import plan_sizes
from clebsch.work import DENSE

__all__ = [
    "BATCH",
    "COPIES",
    "DRAWS",
    "DTYPES",
    "FUNCTIONS",
    "kernel_on_gpu",
    "kernels",
    "of_gate",
    "of_gpu",
    "of_harmonics",
    "of_linear",
    "of_machine",
    "of_one_hot",
    "of_plan",
]

DTYPES = (torch.float32, torch.float64)
LINE = 16  # channels of a panel are padded to a cache line of floats: kPadding in csrc/plan.cpp
WIDE_OUTPUTS = LINE // 2  # output channels that go into the lanes: choose_outputs there
WHOLE_WEIGHTS = 1024  # kWholeWeights in csrc/program.h
CHANNELWISE_MAX_DEGREE = 12  # kChannelwiseMaxDegree there

# Of layers that are torch's operations.
FUNCTIONS = "operations of torch: its functions are the caller's, and each is a pass through memory"
BATCH = "operations of torch: statistics of the whole batch come first, then a second pass scales it"
DRAWS = "operations of torch: the random numbers are torch's, as e3nn draws them, and go through memory"
COPIES = "operations of torch: it copies blocks and computes nothing"
_NO_GATE = "operations of torch, a product for each block: the kernel, if any, takes float32 and float64"


def kernels(
    plan: ProductPlan, dtype: torch.dtype = torch.float32, *, shared: bool = False
) -> tuple[str, str]:
    """What runs the forward pass of a plan, and its backward pass; `shared`: with one weight for all rows."""
    found = backend.describe_plan(plan)
    return tuple(
        _kernel(plan, found[step], [_meets_shared(facts, i, dtype) and shared for facts in found["paths"]])
        for i, step in enumerate(("forward", "derivatives"))
    )


def _meets_shared(facts: dict, step: int, dtype: torch.dtype) -> bool:
    """Whether a path with shared weights has an order of its own: csrc/cpu/tensor_product_uvw.inl.h."""
    limit = unrolled_degrees("tensor_product", dtype).get("rows", -1)
    return facts["shared_weights_meet"][step] is not None and max(facts["degrees"]) <= limit


def _kernel(plan: ProductPlan, lanes: str, ordered: Sequence[bool]) -> str:
    """ordered: of each path, `_meets_shared`."""
    paths = _paths(plan)
    if not paths:
        return "none"
    if lanes == "channels":
        names = {False: "channelwise", True: "elementwise"}
        return " + ".join(names[kind] for kind in sorted({_is_elementwise(plan, path) for path in paths}))
    names = ("rows", "dense", "uvw")
    kinds = {_is_dense(path) + is_ordered for path, is_ordered in zip(paths, ordered, strict=True)}
    return " + ".join(names[kind] for kind in sorted(kinds))


def _paths(plan: ProductPlan) -> list[Path]:
    """Those with anything to do; `describe_plan` lists the same."""
    return [path for path in plan.paths if all(block.mul for block in plan.blocks(path))]


def _is_elementwise(plan: ProductPlan, path: Path) -> bool:
    return path.mode == "uuu" and _mul2(plan, path) > 1


def _is_dense(path: Path) -> bool:
    return path.mode in DENSE


def _suits_channels(plan: ProductPlan, path: Path) -> bool:
    _, y, out = plan.blocks(path)
    if path.mode == "uuu":
        return y.mul > 1 or out.ir.l <= CHANNELWISE_MAX_DEGREE
    return path.mode == "uvu" and y.mul == 1 and out.ir.l <= CHANNELWISE_MAX_DEGREE


def kernel_on_gpu(plan: ProductPlan, runs: str) -> str:
    """What runs a plan there, if `runs` says whose kernels do: docs/cuda.md and docs/triton.md."""
    if all(_is_channelwise(plan, path) for path in _paths(plan)):
        return "channels"
    return "rows" if runs == "cuda" else "modes"


def _is_channelwise(plan: ProductPlan, path: Path) -> bool:
    return path.mode == "uvu" and _mul2(plan, path) == 1


def of_gpu(plan: ProductPlan, *, may_be_one_hot: bool) -> Iterator[str]:
    """Why a plan is slower on a GPU than another one would be; rows of its y may be one-hot where all rows
    share their weights."""
    if not all(_is_channelwise(plan, path) for path in _paths(plan)):
        yield "not every path is uvu with one copy of y: a kernel that takes any plan, and is not tuned"
    elements = plan_sizes(plan).elements
    if may_be_one_hot and elements > 1:
        yield (
            "nothing looks whether rows of y are one-hot, which would wait for the GPU: they go through the "
            f"matrices of all {elements}; ops.linear takes an index"
        )


def of_machine(noun: str, dtype: torch.dtype, device: torch.device) -> Iterator[str]:
    """What is slow, or impossible, whatever the plan, for kernels of a noun."""
    known, name = backend.dtypes_of(noun, device.type), str(dtype).removeprefix("torch.")
    if not known:
        yield f"it is on {device}: {backend.no_kernels(noun, device.type)}"
    if name not in (known or backend.WIDE):
        yield f"{name} is refused by the kernels, which compute in float32 or float64"
    if device.type != "cpu":
        return
    usable, used = backend.usable_instruction_sets(), backend.instruction_set()
    if used != usable[-1]:
        yield f"{used} is in use by CLEBSCH_ISA or select_instruction_set; this processor has {usable[-1]}"
    if dtype == torch.float64:
        yield "float64: half as many numbers in a vector as float32, twice the bytes"


def of_plan(plan: ProductPlan, dtype: torch.dtype, *, shared: bool) -> Iterator[str]:
    """Why the kernels are slower on this plan than they are on others."""
    paths = _paths(plan)
    if not paths:
        yield "no path has anything to do: the output is zero"
        return
    found = backend.describe_plan(plan)
    lanes = [found["forward"], found["derivatives"]]
    if "rows" in lanes:
        yield from _why_rows(plan, paths, lanes)
    if "channels" in lanes:
        yield from _why_panels(plan, paths)
    yield from _why_not_unrolled(plan, paths, found, dtype, shared)
    if not shared:
        yield from _why_transposed(plan, paths, found)


def of_one_hot(plan: ProductPlan) -> Iterator[str]:
    """What runs a plan whose y is one block of scalars, where rows of y are one-hot."""
    elements = plan_sizes(plan).elements
    if elements > 0:
        yield (
            "species-indexed linear when y is one-hot: the kernels and costs shown are those of any other y, "
            f"through the matrices of all {elements}"
        )


def _why_transposed(plan: ProductPlan, paths: Sequence[Path], found: dict) -> Iterator[str]:
    """Of the dense paths whose weights, different for each row, are not read in place."""
    moved = [
        plan.irreps_out[path.i_out].mul
        for path, facts in zip(paths, found["paths"], strict=True)
        if _is_dense(path) and path.has_weight and not facts["outputs_in_lanes"]
    ]
    narrow = [width for width in moved if width < WIDE_OUTPUTS]
    if narrow:
        yield (
            f"{_counted(narrow, paths, 'has', 'have')} {_listed(sorted(set(narrow)))} output channels, fewer "
            f"than {WIDE_OUTPUTS}: the weights of each row are transposed before they are used"
        )
    if len(moved) > len(narrow):
        yield (
            f"a row has no more than {WHOLE_WEIGHTS} weights, and not all paths are uvw, uuw or u<vw with "
            f"{WIDE_OUTPUTS} output channels: its weights are transposed for all paths"
        )


def _counted(numbers: Sequence[Any], paths: Sequence[Path], singular: str, plural: str) -> str:
    noun = "path" if len(paths) == 1 else "paths"
    return f"{len(numbers)} of {len(paths)} {noun} {singular if len(numbers) == 1 else plural}"


def _listed(values: Sequence[int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def _why_rows(plan: ProductPlan, paths: Sequence[Path], lanes: Sequence[str]) -> Iterator[str]:
    steps = "" if lanes[0] == lanes[1] else " forward" if lanes[0] == "rows" else " in derivatives"
    unsuited = [i for i, path in enumerate(paths) if not _suits_channels(plan, path)]
    others = [i for i in unsuited if not _is_dense(paths[i])]
    if not unsuited:
        few = sorted({plan.irreps_in1[path.i_in1].mul for path in paths})
        yield (
            f"lanes are rows{steps}: for blocks of multiplicity {_listed(few)} that is less work than "
            "vectors of channels, padded; all operands are transposed"
        )
    elif others:
        kinds = sorted({_kind(plan, paths[i]) for i in others})
        yield (
            f"lanes are rows: {_counted(others, paths, 'is', 'are')} {', '.join(kinds)}, and the channelwise "
            f"kernel takes uvu with one copy of y to degree {CHANNELWISE_MAX_DEGREE} and uuu; all operands "
            "are transposed, and loops are general"
        )


def _kind(plan: ProductPlan, path: Path) -> str:
    _, y, out = plan.blocks(path)
    if path.mode == "uvu" and y.mul > 1:
        return f"uvu with {y.mul} copies of y"
    return f"{path.mode} to degree {out.ir.l}" if path.mode in ("uvu", "uuu") else path.mode


def _why_panels(plan: ProductPlan, paths: Sequence[Path]) -> Iterator[str]:
    ragged = sorted({mul for path in paths if (mul := plan.irreps_in1[path.i_in1].mul) % LINE})
    if ragged:
        yield (
            f"blocks of multiplicity {_listed(ragged)} are padded to multiples of {LINE}: the rest of "
            "the lanes computes nothing"
        )
    if plan.layout == "mul_ir":
        moved = max(max(block.ir.l for block in plan.blocks(path)[::2]) for path in paths)
        if moved > 0:
            yield (
                "mul_ir: channels of degrees above 0 are transposed in registers, in and out, a few percent "
                f"of the time; layout='ir_mul' needs none where multiplicities are multiples of {LINE}"
            )
    elif ragged:
        yield f"ir_mul: rows are copied to padded panels: not all multiplicities are multiples of {LINE}"


def _why_not_unrolled(
    plan: ProductPlan, paths: Sequence[Path], found: dict, dtype: torch.dtype, shared: bool
) -> Iterator[str]:
    limits = unrolled_degrees("tensor_product", dtype)
    if not limits:
        return
    if "channels" in (found["forward"], found["derivatives"]):
        # Elementwise paths read tables at any degree; that is their kernel.
        rest = [i for i, path in enumerate(paths) if not _is_elementwise(plan, path)]
        high = [i for i in rest if max(found["paths"][i]["degrees"]) > limits["channels"]]
        if high:
            degrees = sorted({found["paths"][i]["degrees"] for i in high})
            shown = ", ".join(f"({', '.join(map(str, triple))})" for triple in degrees[:4])
            more = ", ..." if len(degrees) > 4 else ""
            yield (
                f"{_counted(high, paths, 'is', 'are')} not unrolled: degrees {shown}{more} are above "
                f"{limits['channels']}, the limit in {str(dtype).removeprefix('torch.')} for "
                f"{backend.instruction_set()}"
            )
    if found["forward"] == "rows":
        # What has one copy of y and still runs general loops; of other paths that was said.
        single = [path for path in paths if path.mode in ("uvu", "uuu") and _mul2(plan, path) == 1]
        whole = shared or plan.weight_numel <= WHOLE_WEIGHTS
        high = [path for path in single if max(b.ir.l for b in plan.blocks(path)) > limits["rows"]]
        left = high if whole else single
        if left:
            yield (
                f"forward, {_counted(left, paths, 'runs', 'run')} general loops: with rows in the lanes "
                f"degrees are constants to {limits['rows']}, and where weights are shared or at most "
                f"{WHOLE_WEIGHTS} a row"
            )


def _mul2(plan: ProductPlan, path: Path) -> int:
    return plan.irreps_in2[path.i_in2].mul


def unrolled_degrees(noun: str, dtype: torch.dtype) -> dict[str, int]:
    """By what lies in the lanes, the largest degree that is a constant in the code in use; {} for a dtype
    that has no kernels."""
    return {
        kernel["lanes"]: kernel["unrolled_degree"]
        for kernel in backend.kernels()
        if kernel["noun"] == noun
        and kernel["instruction_set"] == backend.instruction_set()
        and kernel["dtype"] == str(dtype).removeprefix("torch.")
    }


def of_harmonics(degrees: Sequence[int], dtype: torch.dtype) -> Iterator[str]:
    """Why harmonics of these degrees take general loops."""
    limit = unrolled_degrees("spherical_harmonics", dtype).get("points")
    if limit is None or not degrees:
        return
    if list(degrees) != list(range(max(degrees) + 1)):
        yield "degrees are not 0, 1, ..., l in order: general loops, and degrees between are computed too"
    elif max(degrees) > limit:
        yield f"not unrolled: degree {max(degrees)} is above {limit}"


def of_gate(*, has_gates: bool) -> list[str]:
    """Why a gate is left to torch."""
    return [_NO_GATE] if has_gates else [FUNCTIONS]


def of_linear(irreps_out: Irreps, *, shared: bool, is_compiled: bool) -> Iterator[str]:
    """Why mixing channels is slower than a matrix product."""
    if not is_compiled:
        yield (
            "operations of torch, a matrix product for each block of the output: kernels, where the device "
            "has any, take float32 and float64, without f_in, to degree 100 and 1048576 copies"
        )
        if any(ir.l > 0 and mul > 0 for mul, ir in irreps_out):
            yield "mul_ir: blocks of degrees above 0 are copied, components out of the way, and copied back"
    if not shared:
        yield "weights of each row: two operations for each number read at degree 0"
