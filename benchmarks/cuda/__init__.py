"""What the kernels for GPUs are made of, counted without a GPU: `python -m benchmarks.cuda`.

Nothing here is a time, and nothing was measured: the machine code is compiled and read.
"""
