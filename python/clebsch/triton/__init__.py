"""Kernels for GPUs in Triton, made for one plan at a time: docs/triton.md.

`source` and what generators of source import need neither torch nor Triton; Triton itself is imported when a
kernel is first started.
"""
