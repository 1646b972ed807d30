"""The way from Python to an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from clebsch import backend

__all__ = [
    "asked_for",
    "call",
    "in_transform",
    "is_autocast",
    "listed",
    "may_look",
    "on_host",
    "require_alike",
    "require_dense",
    "require_one_device",
    "suits_kernels",
    "takes",
    "takes_dtype",
    "will_run",
]

# Whose numbers Python sees without waiting for what a device has still to do; tests say it is another.
HOST = "cpu"
_NAMES = {getattr(torch, name): name for name in (*backend.WIDE, *backend.NARROW)}


def call(operator: Any, *arguments: Any) -> Any:
    """`operator(*arguments)`, past autograd where nothing is to be differentiated.

    Derivatives are registered in Python, and asking them whether they are wanted takes as long as a small
    product. Transforms of torch.func and compilers see the whole call.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return _transformed(operator, *arguments)
    if torch.is_grad_enabled() and any(
        isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
    ):
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _transformed(operator: Any, *arguments: Any) -> Any:
    """In a transform of torch.func: NotImplementedError with the remedy where it asks for gradients."""
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        noun = operator._qualified_op_name.rpartition("::")[2]
        raise NotImplementedError(
            f"{noun}: its kernel has no gradients under torch.func (grad, vjp, jacrev, hessian): take "
            "torch.autograd.grad, with create_graph=True or is_grads_batched=True, or e3nn's layer"
        ) from error


def asked_for(ctx: Any, count: int, operands: Sequence[Tensor | None] | None = None) -> tuple[bool, ...]:
    """Of which of the first `count` arguments of an operator the backward pass at work takes gradients.

    operands: the arguments, if one of them may be None.

    `ctx.needs_input_grad` says which arguments require gradients. Where forces are asked for, by
    torch.autograd.grad of positions, weights do too, and theirs would be thrown away: torch knows which nodes
    of its graph will run.
    """
    wanted = tuple(ctx.needs_input_grad[:count])
    nodes = getattr(ctx, "next_functions", None)  # one for each argument that is a tensor
    if nodes is None or torch.compiler.is_dynamo_compiling():
        return wanted
    following = iter(nodes)
    present = [True] * count if operands is None else [operand is not None for operand in operands]
    return tuple(
        is_present and will_run(next(following)[0]) and is_wanted
        for is_present, is_wanted in zip(present, wanted, strict=True)
    )


def will_run(node: Any) -> bool:
    """Whether the backward pass at work runs a node of its graph."""
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that torch.autograd.grad was asked for; or no backward pass of the engine
        return True


def _dtype_name(value: Tensor) -> str:
    """The dtype of `value` as messages name it."""
    return str(value.dtype).removeprefix("torch.")


def listed(names: Sequence[str]) -> str:
    """float32, float16 or float64."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def require_alike(noun: str, **operands: Any) -> None:
    """TypeError or ValueError unless all are tensors of a dtype that the operators of `noun` take, and of
    the dtype and device of the first.
    """
    for name, value in operands.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{noun}: {name} must be a tensor, got {type(value).__name__}")
    label, first = next(iter(operands.items()))
    if not takes_dtype(noun, first):
        known = listed(backend.dtypes_of(noun, first.device.type) or backend.WIDE)
        raise TypeError(f"{noun}: {label} must be {known}, got {_dtype_name(first)}")
    for name, value in operands.items():
        if value.dtype != first.dtype:
            wanted, got = _dtype_name(first), _dtype_name(value)
            raise TypeError(f"{noun}: {name} must have the dtype of {label}, {wanted}, got {got}")
        if value.device != first.device:
            raise ValueError(
                f"{noun}: {name} must be on the device of {label}, {first.device}, got {value.device}"
            )


def require_dense(layer: str, name: str, value: Tensor) -> None:
    """TypeError for a sparse, nested or MKLDNN tensor, whose rows nothing here can read."""
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{layer}: {name} must be a dense tensor, got {kind}")


def takes_dtype(noun: str, value: Tensor) -> bool:
    """Whether operators of a noun know the dtype of `value`: some kernels store in 16 bits, too. Where there
    is no kernel for its device, they work out shapes."""
    return value.dtype in (torch.float32, torch.float64) or takes(noun, value)


def takes(noun: str, value: Tensor) -> bool:
    """Whether there is a kernel of a noun for the device and dtype of `value`."""
    return _NAMES.get(value.dtype) in backend.dtypes_of(noun, value.device.type)


def require_one_device(noun: str, **operands: Tensor | None) -> None:
    """ValueError for operands of several devices: torch calls a fake kernel if one of them is "meta"."""
    (first, device), *others = (
        (name, operand.device) for name, operand in operands.items() if operand is not None
    )
    for name, other in others:
        if other != device:
            raise ValueError(f"{noun}: {name} must be on the device of {first}, {device}, got {other}")


def suits_kernels(noun: str, x: Tensor) -> bool:
    """Whether a layer that torch's operations can do as well may take the kernel of a noun for x."""
    device = x.device.type
    if _NAMES.get(x.dtype) not in backend.dtypes_of(noun, device) or torch.is_autocast_enabled(device):
        return False
    # Kernels have no rule for transforms and forward mode, and would drop tangents.
    return not in_transform() and forward_ad._current_level < 0


def may_look(*tensors: Tensor) -> bool:
    """Whether Python may decide by the numbers of these tensors what to do.

    Not where something records a call to repeat it with other numbers; and not on a GPU, which would have to
    finish first all that it was given to do, and cannot be waited for while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or in_transform():
        return False
    if torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0:
        return False
    return all(map(on_host, tensors))


def on_host(x: Tensor) -> bool:
    """Whether the numbers of x are where Python runs."""
    return x.device.type == HOST


def is_autocast(device: str | None = None) -> bool:
    """Whether autocast is on for a type of device; for any that kernels run on, if none is given."""
    if device is None:
        return is_autocast("cpu") or is_autocast("cuda") or is_autocast("xpu")
    return torch.is_autocast_enabled(device)


def in_transform() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# Torch's compiler calls it while it traces, in the transforms that it traces through; not every torch >= 2.10
# compares what the call gives with None rightly.
in_transform._dynamo_marked_constant = True
