"""What is built: one version, libraries that load on any machine, the torch that is built against."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clebsch
from clebsch import backend, ops

ROOT = Path(__file__).parents[1]
OBJECTS = ROOT / "build" / "develop"
LIBRARIES = sorted(Path(clebsch.__file__).parent.glob("*.so"))


def python(code, **environment):
    """Runs code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_version_is_that_of_pyproject():
    assert f'\nversion = "{clebsch.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


def test_import_adds_little_to_that_of_torch():
    """Processor time, best of three: the machine may be busy, the first may have to compile the sources."""
    code = "import time, torch; t = time.process_time(); import clebsch; from clebsch import nn, o3; "
    code += "print(time.process_time() - t)"
    seconds = [float(python(code, PYTHONDONTWRITEBYTECODE="").stdout) for _ in range(3)]
    assert min(seconds) < 0.15


# Instruction sets


def test_each_usable_instruction_set_can_be_chosen():
    for name in backend.usable_instruction_sets():
        result = python("from clebsch import backend; print(backend.instruction_set())", CLEBSCH_ISA=name)
        assert (result.stdout, result.stderr) == (f"{name}\n", "")


def test_unknown_instruction_set_fails_with_the_list():
    result = python("from clebsch import backend; backend.instruction_set()", CLEBSCH_ISA="unknown")
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ValueError: ") and "unknown" in message
    assert all(name in message for name in backend.usable_instruction_sets())


def objects_of(isa):
    found = sorted(OBJECTS.glob(f"CMakeFiles/clebsch_{isa}.dir/**/*.o"))
    if not found:
        pytest.skip("no object files in build/develop: make develop leaves them there")
    return found


@pytest.mark.parametrize("isa", backend.compiled_instruction_sets())
def test_objects_of_one_instruction_set_share_no_symbol(isa):
    """The linker keeps one copy of a weak symbol for all: compiled wide, it kills narrow machines."""
    for file in objects_of(isa):
        weak = re.findall(r"^.* [VWu] .*$", output("nm", "--defined-only", file), re.MULTILINE)
        assert not weak, f"{file.name}: {weak[:5]}"


@pytest.mark.parametrize("isa", backend.compiled_instruction_sets())
def test_objects_of_one_instruction_set_run_nothing_when_loaded(isa):
    for file in objects_of(isa):
        assert not re.search(r"\.(init_array|ctors)", output("readelf", "--sections", "--wide", file)), (
            file.name
        )


# Libraries


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_libraries_are_found_beside_each_other_and_nowhere_else(library):
    dynamic = output("readelf", "--dynamic", "--wide", library)
    assert re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", dynamic) in ([], ["$ORIGIN"])
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    ours = {path.name for path in LIBRARIES}
    # Of torch, only the CPU half, and only for the operators.
    torch = {"libtorch_cpu.so"} if library.name.startswith(("_clebsch_torch", "_clebsch_cuda")) else set()
    assert needed <= system | ours | torch


def test_operators_need_only_the_c_interface_of_torch():
    """Its stable ABI: C++ symbols of torch would tie the binary to the version that it was built against."""
    (library,) = [path for path in LIBRARIES if path.name.startswith("_clebsch_torch")]
    found = re.findall(r"^ +(\w) (\S+)$", output("nm", "-D", "--undefined-only", library), re.MULTILINE)
    # Those of the C and C++ libraries carry a version; the loader's own do not.
    foreign = {name: kind for kind, name in found if "@" not in name and "7clebsch" not in name}
    foreign = {
        name: kind for name, kind in foreign.items() if not name.startswith(("_ITM_", "__gmon_start__"))
    }
    assert "aoti_torch_library_def" in foreign or "aoti_torch_library_init_def" in foreign
    assert [name for name in foreign if not re.fullmatch(r"(aoti_)?torch_\w+", name)] == []
    assert foreign["torch_from_blob"] == "w", "torch 2.10 has none"


# cmake/find_torch.py


def find_torch(**environment):
    return subprocess.run(
        [sys.executable, ROOT / "cmake" / "find_torch.py"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_build_finds_the_torch_in_use():
    torch = python("import torch; print(*torch.__path__)").stdout
    assert find_torch().stdout == torch
    assert find_torch(CLEBSCH_TORCH=torch.strip()).stdout == torch


def test_build_finds_torch_behind_an_isolated_environment(tmp_path):
    """As in `python -m build`: another environment runs the build, started by the one that has torch."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    result = subprocess.run(
        [tmp_path / "bin" / "python", ROOT / "cmake" / "find_torch.py"],
        capture_output=True,
        text=True,
        env={"PATH": os.defpath},
    )
    assert result.stdout == find_torch().stdout


def test_build_refuses_an_old_torch(tmp_path):
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    result = find_torch(CLEBSCH_TORCH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"{tmp_path} is torch 2.9.1+cpu, older than 2.10",
        "clebsch builds against an installed torch >= 2.10 and found none: install torch first, run the "
        "build with that Python, or set CLEBSCH_TORCH to the folder of its package",
    ]


# README.md


def readme(language):
    """Its blocks of that language, "" for plain text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [text for marked, text in blocks if marked == language]


def test_readme_says_what_happens():
    """Its examples run, and the lines of e3nn that it claims to be equivalent to are."""
    e3nn_o3 = pytest.importorskip("e3nn.o3", reason="README compares with e3nn")
    equivalent, use, *others = readme("python")
    names = {}
    exec(use, names)
    out = names["out"].detach()
    # In a program of e3nn the irreps are e3nn's.
    irreps = {
        name: e3nn_o3.Irreps(str(value)) for name, value in names.items() if type(value).__name__ == "Irreps"
    }
    exec(equivalent, {**names, **irreps, "o3": e3nn_o3}, expected := {})
    torch.testing.assert_close(out, expected["out"].detach(), rtol=0, atol=1e-5 * float(out.abs().max()))
    try:
        for example in others:
            exec(example, names)
    finally:
        clebsch.e3nn.disable()  # one of them enables it, for good


def test_readme_quotes_the_errors():
    """The sentences that it shows, provoked on the arguments of its own example."""
    (quoted,) = (block.splitlines() for block in readme("") if "Error: " in block)
    _, use, *_ = readme("python")
    exec(use, names := {})
    plan, senders = names["convolution"].plan, names["senders"]
    x, y, weight = names["x"][:120], names["y"][:120], names["weight"][:120, 1:]
    senders[0] = names["num_nodes"]
    calls = [
        lambda: ops.tensor_product(x, y, weight, plan),
        lambda: clebsch.Graph(senders, names["receivers"], names["num_nodes"]),
    ]
    raised = []
    for call in calls:
        with pytest.raises((ValueError, IndexError)) as caught:
            call()
        raised.append(f"{caught.type.__name__}: {caught.value}")
    assert quoted == raised
