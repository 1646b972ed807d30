"""python -m benchmarks.cuda update|check|table

update: compiles every kernel for every architecture, writes budget.json and docs/cuda-roofline.md. check:
compiles, and fails where a kernel became worse or the file is old. table: writes docs/cuda-roofline.md from
budget.json. Where there is no nvcc the first two do nothing; with another nvcc than that of the file, check
asks for zero spills alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import budget, roofline


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda")
    parser.add_argument("action", choices=["update", "check", "table"])
    parser.add_argument(
        "--generated", type=Path, default=budget.REPOSITORY / "build" / "develop" / "generated"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.action == "table":
        return roofline.write()
    compiler = budget.nvcc()
    if not compiler:
        print("cuda budget: skipped, there is no nvcc")
        return 0
    version = budget.nvcc_version(compiler)
    kernels = budget.compile_all(compiler, options.generated, options.jobs)
    found = budget.spills(kernels)
    if options.action == "update":
        budget.write(version, kernels)
        roofline.write()
    elif version != budget.read()["nvcc"]:
        known = budget.read()["nvcc"]
        print(f"cuda budget: the file is of nvcc {known}, this is {version}: spills alone are checked")
    else:
        found += budget.differences(budget.read()["kernels"], kernels)
    for line in found:
        print(line)
    print(f"cuda budget: {len(kernels)} kernels, nvcc {version}:", "make cuda-budget?" if found else "ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
