"""The compiled libraries: where they are, which instruction set they run, and what they know of couplings.

`load()` registers the torch operators; everything else works without torch.

The module can be called: `clebsch.backend("triton")` is `select`.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from clebsch.algebra.plan import ProductPlan
from clebsch.algebra.so3 import coupling

__all__ = [
    "MAX_DEGREE",
    "MAX_MULTIPLICITY",
    "backend_of",
    "backends",
    "compiled_instruction_sets",
    "cuda_missing",
    "describe_plan",
    "dtypes_of",
    "instruction_set",
    "kernels",
    "load",
    "native",
    "no_kernels",
    "register_couplings",
    "runs_triton",
    "select",
    "select_instruction_set",
    "usable_instruction_sets",
]


# What the kernels take: kMaxDegree and kMaxMultiplicity of csrc/plan.cpp.
MAX_DEGREE, MAX_MULTIPLICITY = 100, 1 << 20

# What all kernels compute in, and what some store, computing in float32.
WIDE, NARROW = ("float32", "float64"), ("float16", "bfloat16")
# The nouns whose compiled kernels for GPUs store 16 bits.
NARROW_ON_CUDA = frozenset(
    {"spherical_harmonics", "tensor_product", "convolution", "edge_product", "symmetric_contraction"}
)
# For Triton rows of receivers are gathered, and multiplied as others are.
_ON_TRITON = {"edge_product": "tensor_product"}


@functools.cache
def native() -> ModuleType:
    """The Python extension module. ImportError with the remedy if it was not built."""
    try:
        return import_module("clebsch._native")
    except ImportError as error:
        raise ImportError(
            f"clebsch: the compiled library cannot be loaded ({error}). Build it with "
            "'pip install --no-build-isolation .' or, in a source tree, 'make develop'."
        ) from error


def _library(name: str) -> Path | None:
    """The compiled library of this name; in an editable install it lies in one of several package folders."""
    import clebsch

    files = (Path(folder) / name for folder in clebsch.__path__)
    return next((file for file in files if file.is_file()), None)


@functools.cache
def load() -> None:
    """Register `torch.ops.clebsch.*`. ImportError with the remedy if the library does not load."""
    import torch

    native()
    library = _library("_clebsch_torch.so")
    if library is None:
        raise ImportError(
            "clebsch: _clebsch_torch.so is missing; build it with 'pip install --no-build-isolation .'"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"clebsch: the operators do not load under torch {torch.__version__} ({error}). "
            "clebsch needs torch >= 2.10; reinstall it with 'pip install --no-build-isolation .'"
        ) from error
    missing = _load_cuda()
    on_gpu = (torch.version.cuda, torch.version.hip, getattr(torch.version, "xpu", None))
    if missing and any(version is not None for version in on_gpu):
        _triton.put_in_place()


class _Triton:
    """Triton's kernels for tensors on a GPU, in front of the compiled ones while they are in place."""

    def __init__(self) -> None:
        self._library: Any = None
        self._nouns: frozenset[str] = frozenset()

    @property
    def is_in_place(self) -> bool:
        return self._library is not None

    def runs(self, noun: str) -> bool:
        """Whether tensors on a GPU meet these kernels of a noun, and Triton is there to make them."""
        return self.is_in_place and noun in self._nouns and _has_triton()

    def put_in_place(self) -> None:
        if self._library is None:
            operators = import_module("clebsch.triton.operators")
            self._library, self._nouns = operators.register("CUDA", "XPU"), frozenset(operators.OPERATORS)

    def take_away(self) -> None:
        if self._library is not None:
            self._library._destroy()
            self._library = None


_triton = _Triton()


@functools.cache
def _has_triton() -> bool:
    try:
        return find_spec("triton") is not None
    except ValueError:  # somebody put something else in its place
        return False


def select(name: str) -> None:
    """Run tensors on a GPU with other kernels from the next call on, in all threads.

    name: "cuda", the compiled ones; "triton", those that are made for one plan at a time, for any GPU that
    Triton knows; or "auto", which is how it begins: the compiled ones if they were built, else Triton's.

    Raises ValueError for another name, ImportError with the remedy for a backend that is not there.
    """
    if name not in ("auto", "cuda", "triton"):
        raise ValueError(f"clebsch.backend: name must be 'auto', 'cuda' or 'triton', got {name!r}")
    load()
    missing = _load_cuda()
    if name == "cuda" and missing:
        raise ImportError(f"clebsch.backend: the compiled kernels for GPUs are {missing}")
    if name == "triton":
        import_module("clebsch.triton.launch").require_triton()
    if name == "triton" or (name == "auto" and missing):
        _triton.put_in_place()
    else:
        _triton.take_away()


def runs_triton() -> bool:
    """Whether tensors on a GPU are left to Triton's kernels."""
    return _triton.is_in_place


def backend_of(noun: str, device: str) -> str:
    """Whose kernels run the operators of a noun on a type of device, as torch names it: "cpu", "cuda" for the
    compiled ones of GPUs, "triton", or "" if there are none.

    Torch's compiler takes the answer for a constant: what it has compiled stays after `select`.
    """
    if device == "cpu":
        return "cpu"
    load()
    if device in ("cuda", "xpu") and _triton.runs(_ON_TRITON.get(noun, noun)):
        return "triton"
    return "cuda" if device == "cuda" and not (_load_cuda() or _devices_known_missing()) else ""


def dtypes_of(noun: str, device: str) -> tuple[str, ...]:
    """What the kernels of `backend_of` take: names of dtypes; none where there are none.

    The one place that says so: operators, layers and accelerated models ask here.
    """
    if device == "cpu":  # at every call of a layer
        return WIDE
    runs = backend_of(noun, device)
    takes_narrow = runs == "triton" or (runs == "cuda" and noun in NARROW_ON_CUDA)
    return (WIDE + NARROW if takes_narrow else WIDE) if runs else ()


def no_kernels(noun: str, device: str) -> str:
    """Why `backend_of` is "", in a few words."""
    if device not in ("cuda", "xpu"):
        return "kernels run on the CPU and on GPUs"
    missing = (
        [f"the compiled ones are {_load_cuda() or _devices_known_missing()}"] if device == "cuda" else []
    )
    if _triton.is_in_place:
        missing.append(f"Triton's have no {noun}" if _has_triton() else "Triton is not installed")
    return f"no kernel for it: {', and '.join(missing) or 'Triton is not in use'}"


# Torch's compiler calls them while it traces.
backend_of._dynamo_marked_constant = dtypes_of._dynamo_marked_constant = True
no_kernels._dynamo_marked_constant = runs_triton._dynamo_marked_constant = True


def _triton_state() -> str:
    if not _has_triton():
        return "not installed: pip install 'clebsch[triton]'"
    names = metadata.packages_distributions().get("triton", ())  # builds for AMD's and Intel's have others
    version = f"{metadata.version(names[0])} " if names else ""
    return f"{version}installed; these kernels were never run on a GPU by their authors"


@functools.cache
def _load_cuda() -> str:
    """Register the operators for GPUs, if they were built; why there are none, or ""."""
    import torch

    library = _library("_clebsch_cuda.so")
    if library is None:
        return "not built: CLEBSCH_CUDA=ON and nvcc when building"
    xpu = getattr(torch.version, "xpu", None)
    if torch.version.hip is not None or (torch.version.cuda is None and xpu is not None):
        return f"built for NVIDIA's, and torch {torch.__version__} is for others"  # whose are Triton's
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"built, does not load ({error})"
    built, driver, _ = _versions(library)
    # One of the same major version runs it; 0 is no driver, which torch says.
    if not 0 < driver // 1000 < built // 1000:
        return ""
    known, needed = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, built))
    return f"built with CUDA {needed}, and the driver is for {known}: update it, or build with an older nvcc"


def _versions(library: Path) -> tuple[int, int, str]:
    """The CUDA that the library for GPUs was built with and the newest that the driver knows, as 1000 major +
    10 minor, and the architectures that CMake was given. The driver is not woken."""
    compiled = ctypes.CDLL(str(library))
    compiled.clebsch_cuda_architectures.restype = ctypes.c_char_p
    return (
        compiled.clebsch_cuda_version(),
        compiled.clebsch_cuda_driver_version(),
        compiled.clebsch_cuda_architectures().decode(),
    )


def _has_code_for(capability: tuple[int, int], architectures: str) -> bool:
    """Whether the library holds machine code for a GPU, which later ones of its major version run too, or
    code that the driver compiles, which all later ones do. Names that are no numbers ("native") count as
    code for it."""
    for name in architectures.split():
        number, _, kind = name.partition("-")
        if not number.isdecimal():
            return True
        major, minor = divmod(int(number), 10)
        if (kind != "virtual" and major == capability[0] and minor <= capability[1]) or (
            kind != "real" and (major, minor) <= capability
        ):
            return True
    return False


@functools.cache
def _devices_missing() -> str:
    """Why none of the devices that torch sees runs what was built; "" if one does. Wakes the driver."""
    import torch

    library = _library("_clebsch_cuda.so")
    built = _versions(library)[2] if library else "native"
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if not capabilities or any(_has_code_for(capability, built) for capability in capabilities):
        return ""
    have = ", ".join(
        f"{torch.cuda.get_device_name(i)} is sm_{major}{minor}"
        for i, (major, minor) in enumerate(capabilities)
    )
    return f"built for GPUs of architectures {built}, and {have}: build with -DCMAKE_CUDA_ARCHITECTURES"


def _devices_known_missing() -> str:
    """The same once torch has woken the driver, as it has where there is a tensor on a GPU; else ""."""
    import torch

    return _devices_missing() if torch.cuda.is_initialized() else ""


def cuda_missing() -> list[str]:
    """What keeps operators from running on a GPU here, in a few words each; nothing where they run."""
    load()
    reasons = [reason for reason in (_load_cuda(), _torch_missing()) if reason]
    return reasons or list(filter(None, [_devices_missing()]))


def _torch_missing() -> str:
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    return "" if torch.cuda.is_available() else "torch finds no device or no driver"


def _cuda_state() -> str:
    library, device = _load_cuda(), _torch_missing()
    if library or device:
        return library or f"built; {device}"
    import torch

    if none_fits := _devices_missing():
        return none_fits
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"built, and never run on a GPU by its authors; devices: {names}"


def compiled_instruction_sets() -> list[str]:
    """Names of the instruction sets in this build, narrowest first."""
    return native().compiled_instruction_sets()


def usable_instruction_sets() -> list[str]:
    """Those of them that this processor runs."""
    return native().usable_instruction_sets()


def instruction_set() -> str:
    """The one in use: the widest usable, or what CLEBSCH_ISA or `select_instruction_set` says.

    ValueError if CLEBSCH_ISA names none of the usable ones.
    """
    return native().instruction_set()


def select_instruction_set(name: str) -> None:
    """Use another instruction set from the next call on, in all threads. ValueError with the choices."""
    native().select_instruction_set(name)


def kernels() -> list[dict[str, Any]]:
    """Every compiled kernel: its "noun", "dtype" and "instruction_set", what lies in the "lanes" of a vector
    ("points", "channels", "rows" or "elements" of a row), and "unrolled_degree".

    Harmonics of degrees 0, 1, ..., l up to unrolled_degree, and paths uvu with one copy of y whose degrees
    are all up to it, run code in which the degrees are constants (with "rows" in the lanes: in the forward
    pass, where weights are shared or a row of them is short); others run general loops. The kernels of
    "tensor_product" are those of convolutions too: they take rows, or the edges of a graph. Those of "linear"
    multiply matrices, which are the same for all degrees; unrolled_degree is that of the code which brings
    components innermost ("mul_ir") into order and back. Those of "gate" spread a gate over so many components
    by constant permutations.
    """
    return native().kernels()


def backends() -> dict[str, str]:
    """State of each backend, in a few words: usable, or what is missing."""
    load()
    return {
        "cpu": f"usable ({instruction_set()})",
        "cuda": _cuda_state(),
        "triton": _triton_state(),
    }


def describe_plan(plan: ProductPlan | str) -> dict[str, Any]:
    """How a plan runs: what lies in the lanes of a vector ("channels" or "rows") in the "forward" pass and in
    its "derivatives", lengths, and the paths with the cells and terms of their couplings, whether weights
    meet output channels in the lanes ("outputs_in_lanes"), and what meets weights that all rows share
    ("shared_weights_meet", forward and backward: "pairs", "x" or "y"; None where another kernel runs the
    path, as it does beyond unrolled degrees)."""
    if isinstance(plan, ProductPlan):
        register_couplings(plan)
    return native().describe_plan(str(plan))


@functools.lru_cache(maxsize=4096)
def register_couplings(plan: ProductPlan) -> None:
    """Tell the kernels the couplings of this plan whose degrees lie beyond the compiled table."""
    for path in plan.paths:
        degrees = (
            plan.irreps_in1[path.i_in1].ir.l,
            plan.irreps_in2[path.i_in2].ir.l,
            plan.irreps_out[path.i_out].ir.l,
        )
        if not native().has_coupling(*degrees):
            entries = coupling(*degrees)
            native().register_coupling(
                *degrees, [(e.m1, e.m2, e.m3) for e in entries], [e.value for e in entries]
            )


class _CallableModule(ModuleType):
    """`clebsch.backend` is this module, and is called all the same."""

    def __call__(self, name: str) -> None:
        select(name)

    __call__.__doc__ = select.__doc__


sys.modules[__name__].__class__ = _CallableModule
