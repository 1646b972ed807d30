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


def test_operators_have_kernels_for_gpus():
    """No operator of a model is missing on a GPU. What is not built is compared by name."""
    backend.load()
    names = {
        name.removeprefix("clebsch::")
        for name in torch._C._dispatch_get_all_op_names()
        if "clebsch::" in name
    }
    code = """
import torch
from clebsch import ops
for name in sorted(torch._C._dispatch_get_all_op_names()):
    if name.startswith("clebsch::") and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
        print(name)
"""
    assert len(names) >= 22
    if LIBRARY.is_file():
        assert python(code).split() == []
    else:
        assert names == registered_for_gpus()


def registered_for_gpus():
    """The names in the sources: those that the shared headers register, all of which the library asks for."""
    csrc = Path(__file__).parents[1] / "csrc"
    bindings = (csrc / "cuda" / "torch_bindings.cpp").read_text()
    found = set(re.findall(r'm\.impl\("(\w+)"', bindings))
    for header in csrc.glob("torch_*.h"):
        text = header.read_text()
        for function, body in re.findall(
            r"void (register_\w+)\(auto& library\) \{(.*?)\n\}", text, re.DOTALL
        ):
            if f"{function}<Cuda>(m)" in bindings:
                found |= set(re.findall(r'library\.impl\("(\w+)"', body))
    return found


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
