"""`make test-package`: the package as a user gets it. Not part of the suite: it compiles three times.

Wheel and sdist are made by a plain `python -m build` and put into an empty environment that has numpy and
torch only; then the source tree is, by the command that README gives for an environment of one's own.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import sys, torch
from clebsch import Graph, nn, o3

torch.manual_seed(0)
x, points = torch.randn(5, 16, requires_grad=True), torch.randn(12, 3)
y = o3.SphericalHarmonics("1x0e+1x1o", normalize=True, normalization="component")(points)
irreps = "4x0e+4x1o"
paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 1, "uvu", True), (1, 1, 0, "uvu", True)]
convolution = nn.TensorProductConv(irreps, "1x0e+1x1o", irreps, paths)
graph = Graph(torch.arange(12) % 5, torch.arange(12) % 3, 5)
weight = torch.randn(12, convolution.weight_numel)
out = convolution(x, y, weight, graph)
(grad_x,) = torch.autograd.grad(out.square().sum(), x)
product = o3.TensorProduct(irreps, "1x0e+1x1o", irreps, paths, shared_weights=False)
rows = product(x[graph.senders], y, weight)
assert torch.allclose(out, torch.zeros(5, 16).index_add(0, graph.receivers, rows), atol=1e-5)
assert grad_x.shape == x.shape and grad_x.isfinite().all() and out[3:].eq(0).all()
assert not {"e3nn", "scipy", "ase", "matplotlib"} & set(sys.modules)
"""


USE_WITHOUT_TORCH = """
import sys
import numpy
import clebsch.numpy
from clebsch import reference
from clebsch.algebra.plan import ProductPlan

points = numpy.random.default_rng(0).standard_normal((10, 3))
harmonics = clebsch.numpy.spherical_harmonics([0, 1, 2], points, True, "component")
assert abs(harmonics - reference.spherical_harmonics([0, 1, 2], points, True, "component")).max() < 1e-13
plan = ProductPlan("4x1o", "0e+1o+2e", "4x1o", [(0, 0, 0, "uvu", True, 0.5), (0, 2, 0, "uvu", True, 0.5)])
x, weight = numpy.ones((10, 12)), numpy.ones(8)
out = clebsch.numpy.tensor_product(plan, x, harmonics, weight)
assert abs(out - reference.tensor_product(plan, x, harmonics, weight)).max() < 1e-13
assert "torch" not in sys.modules
"""
# What `--no-build-isolation` expects to find beside numpy and torch.
BUILD_TOOLS = ["scikit-build-core", "pybind11", "cmake", "ninja"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with what `python -m build` makes of the tree."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The Python of a new environment with numpy and torch."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install(python, "--constraint", ROOT / "constraints.txt", "numpy", "torch")
    return python


def install(python, *what):
    subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)


def test_contents(built):
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        source = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"pyproject.toml", "CMakeLists.txt", "cmake/find_torch.py", "LICENSE", "README.md"} <= source
    assert "csrc/torch_bindings.cpp" in source and "python/clebsch/algebra/so3.py" in source
    assert not [name for name in source if name.endswith((".so", ".o")) or name.startswith(("build", "."))]
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    assert {"clebsch/libclebsch.so", "clebsch/_clebsch_torch.so", "clebsch/cli.py"} <= installed
    assert [name for name in installed if name.startswith("clebsch/_native.")]
    assert {name.split("/")[0].split("-")[0] for name in installed} == {"clebsch"}


def check_installed(python, folder):
    for program in (USE, USE_WITHOUT_TORCH):
        subprocess.run([python, "-I", "-c", program], check=True, cwd=folder)
    subprocess.run([python.parent / "clebsch", "info"], check=True, cwd=folder)
    subprocess.run([python, "-m", "pip", "uninstall", "--yes", "clebsch"], check=True)


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def test_installs_and_runs_with_only_numpy_and_torch(kind, built, empty, tmp_path):
    (package,) = built.glob(kind)
    install(empty, package)
    check_installed(empty, tmp_path)


def test_installs_from_the_source_tree_without_network(empty, tmp_path):
    install(empty, *BUILD_TOOLS)
    install(empty, "--no-build-isolation", "--no-deps", "--no-index", ROOT)
    check_installed(empty, tmp_path)
