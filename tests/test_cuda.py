"""The library for GPUs where there is none: what it needs, what it registers, what is said of it.

CLEBSCH_CUDA_LIBRARY names a library that is not installed (`make cuda`). What kernels compute is tested on
the emulator, with ``pytest --emulated`` and in csrc/tests, and on a GPU in tests/gpu.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clebsch import backend

LIBRARY = Path(
    os.environ.get("CLEBSCH_CUDA_LIBRARY") or Path(backend.__file__).with_name("_clebsch_cuda.so")
).resolve()
OPERATORS = [
    "graph_order",
    *(
        noun + step
        for noun in ("spherical_harmonics", "tensor_product", "convolution", "symmetric_contraction")
        for step in ("", "_backward", "_double_backward")
    ),
]
built = pytest.mark.skipif(not LIBRARY.is_file(), reason="built without CLEBSCH_CUDA")


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def python(code):
    """Runs code after `import clebsch`; the library is found, and no device is to be seen."""
    result = subprocess.run(
        [sys.executable, "-c", f"import clebsch\nclebsch.__path__.append({str(LIBRARY.parent)!r})\n{code}"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@built
def test_import_without_a_driver():
    code = """
import torch
from clebsch import backend, ops
x = torch.ones(2, 3)
ops.spherical_harmonics(x, [0, 1], True, "component")
print(backend.backends()["cuda"])
"""
    assert python(code).strip() == (
        "built; torch finds no device or no driver"
        if torch.version.cuda
        else f"built; torch {torch.__version__} has no CUDA"
    )


@built
def test_operators_have_kernels_for_gpus():
    code = f"""
import torch
from clebsch import ops
for name in {OPERATORS}:
    print(torch._C._dispatch_has_kernel_for_dispatch_key("clebsch::" + name, "CUDA"))
"""
    assert python(code).split() == ["True"] * len(OPERATORS)


@built
def test_needs_neither_a_driver_nor_cuda_of_torch():
    dynamic = output("readelf", "--dynamic", "--wide", LIBRARY)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    assert needed <= system | {
        "libclebsch.so",
        "libtorch_cpu.so",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
    }
    assert re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", dynamic) == ["$ORIGIN"]


@built
def test_needs_only_the_c_interface_of_torch():
    found = re.findall(r"^ +\w (\S+)$", output("nm", "-D", "--undefined-only", LIBRARY), re.MULTILINE)
    foreign = [name for name in found if "@" not in name and "7clebsch" not in name]
    foreign = [name for name in foreign if not name.startswith(("_ITM_", "__gmon_start__", "__cudaRegister"))]
    assert foreign
    assert [name for name in foreign if not re.fullmatch(r"(aoti_)?torch_\w+", name)] == []


@pytest.mark.skipif(LIBRARY.parent == Path(backend.__file__).parent and LIBRARY.is_file(), reason="built")
def test_what_is_missing_is_said():
    assert backend.backends()["cuda"] == "not built: CLEBSCH_CUDA=ON and nvcc when building"
