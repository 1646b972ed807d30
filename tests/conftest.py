"""What every test runs under: one thread per process, fixed seeds, torch's global settings put back."""

import os
import sys

# Before torch is imported. pytest -n runs several processes; tests that are about threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What torch wants of matrix products on a GPU to call them deterministic; set before its first one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import pytest

import kernels_reached

# They want packages that cannot stand beside each other: tests/clients/run.py.
collect_ignore = ["clients"]

in_ci = bool(os.environ.get("CI"))
hypothesis.settings.register_profile(
    "clebsch",
    deadline=None,  # the first example pays for imports and tables
    derandomize=in_ci,
    database=None if in_ci else hypothesis.settings.default.database,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("clebsch")


def pytest_addoption(parser):
    parser.addoption(
        "--emulated",
        action="store_true",
        help="run the kernels of the GPU on the emulator, in the place of the CPU's (make test-emulated)",
    )
    parser.addoption(
        "--on-gpu",
        action="store_true",
        help="run the kernels of the GPU on one, in place of the CPU's (make test-gpu); with --emulated on "
        "the emulator: a trial of this option",
    )
    parser.addoption(
        "--interpreted",
        action="store_true",
        help="run Triton's kernels in its interpreter, in the place of the CPU's (make test-interpreted)",
    )
    parser.addoption(
        "--every-kernel",
        action="store_true",
        help="with --emulated or --interpreted: fail unless operator tests reach every kernel, or kind of it",
    )
    parser.addoption(
        "--gpu",
        action="store_true",
        help="fail where tests/gpu would be skipped for want of an NVIDIA GPU (make test-gpu)",
    )


def pytest_configure(config):
    if config.getoption("--emulated"):
        import emulation

        _replace_kernels(config, emulation)
    if config.getoption("--on-gpu"):
        import emulation

        emulation.load_gpu("cpu" if config.getoption("--emulated") else "cuda")
        if not config.getoption("--emulated"):
            config.pluginmanager.register(kernels_reached.Plugin(config, emulation))
    if config.getoption("--interpreted"):
        import interpretation

        _replace_kernels(config, interpretation)


def _replace_kernels(config, kernels):
    kernels.load()
    config.pluginmanager.register(kernels_reached.Plugin(config, kernels))


def pytest_report_header(config):
    """Which package is tested: an editable install of another source tree comes before PYTHONPATH."""
    import clebsch

    emulated = ", kernels of the GPU on the emulator" if config.getoption("--emulated") else ""
    interpreted = ", Triton's kernels in its interpreter" if config.getoption("--interpreted") else ""
    return f"clebsch: {clebsch.__path__[0]}{emulated}{interpreted}"


@pytest.fixture(autouse=True)
def fixed_torch_state():
    torch = sys.modules.get("torch")  # tests of the algebra do without it
    if torch is None:
        yield
        return
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture
def float64_by_default(fixed_torch_state):
    """For modules that compare with e3nn, which makes its constants in this precision."""
    import torch

    torch.set_default_dtype(torch.float64)
