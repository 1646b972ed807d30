"""What an operator is given: the checks of csrc/torch_operands.h, in the same sentences."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["contiguous_rows", "require", "require_rows"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def require(ok: bool, noun: str, sentence: str) -> None:
    """ValueError unless all is well."""
    if not ok:
        raise ValueError(f"{noun}: {sentence}")


def require_rows(
    noun: str,
    name: str,
    operand: Tensor,
    first: Tensor,
    label: str,
    columns: int,
    may_be_vector: bool = False,
) -> None:
    """ValueError unless `operand` is a matrix of so many columns (or a vector) of the dtype and device of
    `first`, which messages call `label`."""
    require(first.dtype in DTYPES, noun, f"{label} must be float32, float64, float16 or bfloat16")
    require(operand.dtype == first.dtype, noun, f"{name} must have the dtype of {label}")
    require(operand.device == first.device, noun, f"{name} must be on the device of {label}")
    allowed = (1, 2) if may_be_vector else (2,)
    dimensions = "1 or 2" if may_be_vector else "2"
    require(operand.dim() in allowed, noun, f"{name} must have {dimensions} dimensions, got {operand.dim()}")
    found = operand.shape[-1]
    require(found == columns, noun, f"{name} must have {columns} columns, got {found}")


def contiguous_rows(operand: Tensor) -> Tensor:
    """The operand, or a copy where the numbers of a row do not follow each other."""
    return operand if operand.shape[-1] <= 1 or operand.stride(-1) == 1 else operand.contiguous()
