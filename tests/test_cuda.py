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

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.cuda.devices import DEVICES

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


def test_code_is_built_for_the_devices_that_are_counted():
    """Machine code for each, and of the newest also what drivers compile for those that come after it."""
    lists = (Path(__file__).parents[1] / "CMakeLists.txt").read_text()
    (names,) = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES (.*)\)", lists)
    *older, newest = sorted(device.architecture for device in DEVICES)
    assert names.split() == [*(f"{number}-real" for number in older), str(newest)]


@built
def test_what_it_was_built_for_is_said():
    version, driver, architectures = backend._versions(LIBRARY)
    assert version >= 12000 and driver >= 0 and re.fullmatch(r"\d+(-real)?( \d+(-real)?)*", architectures)


def test_gpu_tests_fail_without_a_gpu_where_they_are_asked_for():
    """``make test-gpu`` is not green where nothing ran."""
    if "devices:" in backend.backends()["cuda"]:
        pytest.skip("there is a GPU")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / "gpu")]
    asked = subprocess.run([*command, "--gpu"], capture_output=True, text=True, cwd=here.parent)
    assert asked.returncode != 0
    assert f"tests/gpu need an NVIDIA GPU; cuda is {backend.backends()['cuda']}" in asked.stderr
    makefile = (here.parent / "Makefile").read_text()
    assert "test-gpu: override CUDA := ON\n" in makefile and "pytest tests/gpu --gpu " in makefile


BUILD = Path(__file__).parents[1] / "build" / "develop"


@pytest.mark.skipif(not (BUILD / "libclebsch.so").is_file(), reason="not a tree where it was built")
def test_a_library_of_an_earlier_build_is_removed(tmp_path):
    """One with GPUs, then one without: the library would be loaded beside a libclebsch of another layout."""
    if "CLEBSCH_CUDA:STRING=OFF" not in (BUILD / "CMakeCache.txt").read_text():
        pytest.skip("built with kernels for GPUs")
    (tmp_path / "clebsch").mkdir()
    stale = tmp_path / "clebsch" / "_clebsch_cuda.so"
    stale.touch()
    cmake = Path(sys.executable).with_name("cmake")
    command = [str(cmake) if cmake.is_file() else "cmake", "--install", str(BUILD), "--prefix", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert (stale.parent / "libclebsch.so").is_file() and not stale.exists()


@pytest.mark.skipif(LIBRARY.parent == Path(backend.__file__).parent and LIBRARY.is_file(), reason="built")
def test_what_is_missing_is_said():
    assert backend.backends()["cuda"] == "not built: CLEBSCH_CUDA=ON and nvcc when building"
