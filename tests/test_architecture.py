"""Who may know whom: imports go one way through the package, includes one way through the kernels."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "clebsch"
CSRC = ROOT / "csrc"

# A module sees its own room and the floors below it.
FLOORS = [
    {"algebra.so3"},
    {"algebra.irreps"},
    {"algebra.plan"},
    {"algebra.codegen", "reference", "triton"},
    {"backend", "testing", "work"},
    {"ops", "numpy"},
    {"graph"},
    {"o3", "data"},
    {"nn"},
    {"e3nn"},
    {"convert"},
    {"models", "nequip_modifier", "machine", "slow_paths", "standard_layers", "survey"},
    {"problems"},
    {"demo", "explain", "check"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What is below, and still not to be seen: the judge must not be the defendant, nothing may lean on the tools.
SEEN_BY = {
    "reference": {"testing", "problems", "check"},
    "algebra.codegen": set(),
    "testing": {"problems"},
    "numpy": set(),
}

# Third parties that a room may import; rooms that are not listed may import any.
THIRD_PARTIES = {
    "": set(),
    "algebra": set(),
    "reference": {"numpy"},
    "testing": {"numpy", "hypothesis"},
    "numpy": {"numpy"},
    "backend": {"torch"},
    "work": set(),
    "graph": {"torch"},
    "ops": {"torch"},
    "triton": {"torch", "triton"},
}

NOUNS = (
    "spherical_harmonics",
    "tensor_product",
    "convolution",
    "radial_convolution",
    "linear",
    "symmetric_contraction",
)


# Python


def modules():
    """Dotted name (below clebsch) of every module, and its file."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def room(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "algebra" else parts[0]


def statements(tree):
    """All nodes, but for what is only there for type checkers; with each, whether it runs at import."""
    waiting = [(tree, True)]
    while waiting:
        node, at_import = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += [(child, at_import) for child in node.orelse]
            continue
        yield node, at_import
        inner = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        waiting += [(child, inner) for child in ast.iter_child_nodes(node)]


def imports(module):
    """(imported dotted name, whether at import, whether it was written relatively) of everything imported.

    Our own modules come without "clebsch." in front, as the longest name that is a module.
    """
    file = MODULES[module]
    here = file.relative_to(PACKAGE).parts[:-1]
    for node, at_import in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name.split("."), False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ["clebsch", *here[: len(here) + 1 - node.level], *(node.module or "").split(".")]
            names = [([part for part in [*base, alias.name] if part], True) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [([*node.module.split("."), alias.name], False) for alias in node.names]
        else:
            continue
        for parts, relative in names:
            if parts[0] == "clebsch":
                own = [".".join(parts[1:n]) for n in range(len(parts), 0, -1)]
                yield next(name for name in own if name in MODULES), at_import, relative
            else:
                yield "third party " + parts[0], at_import, relative


def own_imports(module):
    return {name for name, _, _ in imports(module) if not name.startswith("third party")}


def third_parties(module):
    names = {name.removeprefix("third party ") for name, _, _ in imports(module)}
    return {name for name in names if name not in MODULES} - sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", "algebra")])
def test_imports_go_one_way(module):
    assert room(module) in FLOOR, f"{module}: give {room(module)} a floor in {Path(__file__).name}"
    for name in own_imports(module) - {"", "algebra"}:
        if room(name) == room(module):
            continue
        assert FLOOR[room(name)] < FLOOR[room(module)], f"{module} must not import {name}"
        assert room(module) in SEEN_BY.get(room(name), {room(module)}), f"{module} must not import {name}"


def test_no_import_runs_in_a_circle():
    graph = {
        module: {name for name, at_import, _ in imports(module) if at_import and name in MODULES}
        - {module, ""}
        for module in MODULES
    }
    # a package's __init__ runs before its modules, which may then import one another, but not it
    for module in graph:
        graph[module] -= {package for package in graph if module.startswith(package + ".")}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_third_parties(module):
    allowed = THIRD_PARTIES.get(module.split(".")[0])
    if allowed is not None:
        assert third_parties(module) <= allowed


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "algebra"])
def test_algebra_can_be_imported_alone(module):
    """The build imports it as a package of its own: what it imports of ours it names relatively."""
    assert all(relative for name, _, relative in imports(module) if name in MODULES)


def test_reference_never_sees_codegen():
    waiting, seen = [name for name in MODULES if room(name) == "reference"], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting += own_imports(module) - seen
    assert {room(name) for name in seen} - {""} <= {
        "reference",
        "algebra",
        "algebra.so3",
        "algebra.irreps",
        "algebra.plan",
    }


def test_what_works_without_torch():
    names = [
        "clebsch",
        "clebsch.algebra.codegen",
        "clebsch.algebra.plan",
        "clebsch.reference",
        "clebsch.testing",
    ]
    program = f"import sys, {', '.join(names)}; print(*{{'torch', 'hypothesis', 'e3nn'}} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert (run.stdout.strip(), run.stderr) == ("", "")


# Docstrings


def public_definitions(module):
    """Functions, classes and methods without an underscore in front, whether in __all__ or not."""
    waiting = [(node, node.name) for node in definitions(ast.parse(MODULES[module].read_text()))]
    while waiting:
        node, name = waiting.pop()
        yield node, name
        if isinstance(node, ast.ClassDef):
            waiting += [(inner, f"{name}.{inner.name}") for inner in definitions(node)]


def definitions(node):
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [inner for inner in node.body if isinstance(inner, kinds) and not inner.name.startswith("_")]


def has_docstring(node):
    """Written, or taken over from another class by an assignment to __doc__."""
    taken_over = any(
        isinstance(inner, ast.Assign) and "__doc__ =" in ast.unparse(inner) for inner in node.body
    )
    return taken_over or bool(ast.get_docstring(node))


@pytest.mark.parametrize("module", MODULES)
def test_public_names_have_docstrings(module):
    missing = [name for node, name in public_definitions(module) if not has_docstring(node)]
    assert not missing


# C++


def sources():
    files = [file for file in CSRC.rglob("*") if file.suffix in (".h", ".cpp", ".cu")]
    return sorted(file for file in files if (CSRC / "tests") not in file.parents)


def layer(file):
    """Plain arguments and plans 0, instruction sets 1, bodies 2, their tables 3, dispatch 4, bindings 5."""
    if file.name.endswith("_bindings.cpp") or file.name.startswith("torch_"):
        return 5
    if file.parent == CSRC:
        return 0
    if file.name.startswith("vec"):
        return 1
    if file.name.endswith(".inl.h"):
        return 2
    return 3 if any(included.endswith(".inl.h") for included in includes(file)) else 4


def includes(file):
    """Every header named by an include, in its delimiters' order: <...> with brackets, our own bare."""
    found = re.findall(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', file.read_text(), re.M)
    return [name if quote == '"' else f"<{name}>" for quote, name in found]


def own_headers(file):
    """Those of our headers that `file` includes and that are not generated by the build."""
    for name in includes(file):
        for folder in (file.parent, CSRC):
            if not name.startswith("<") and (folder / name).is_file():
                yield (folder / name).resolve()
                break


def relative(file):
    return str(file.relative_to(CSRC))


@pytest.mark.parametrize("file", sources(), ids=relative)
def test_includes_go_one_way(file):
    for header in own_headers(file):
        assert layer(header) <= layer(file), f"{relative(file)} must not include {relative(header)}"


def test_no_include_runs_in_a_circle():
    graph = {file.resolve(): set(own_headers(file)) for file in sources()}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("file", sources(), ids=relative)
def test_who_includes_torch_and_pybind11(file):
    outside = {name.strip("<>").split("/")[0] for name in includes(file) if name.startswith("<")}
    foreign = {name for name in outside if name in ("torch", "ATen", "c10", "pybind11", "Python.h", "numpy")}
    room = {"torch_": "torch", "python_": "pybind11"}
    assert foreign <= {name for prefix, name in room.items() if file.name.startswith(prefix)}


# Headers without functions that a compiler might emit outside of the kernels, where they would hold
# instructions that not every CPU has.
HARMLESS = {"cmath", "cstddef", "cstdint", "cstdlib", "cstring", "type_traits", "utility"}
HARMLESS |= {"arm_neon.h", "immintrin.h"}


@pytest.mark.parametrize("file", [f for f in sources() if f.suffix == ".cpp" and layer(f) == 3], ids=relative)
def test_kernels_include_no_containers(file):
    waiting, seen, outside = [file], set(), set()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        outside |= {name.strip("<>") for name in includes(file) if name.startswith("<")}
        waiting += set(own_headers(file)) - seen
    assert outside <= HARMLESS


def test_what_only_prefetches_is_inline():
    # To the compiler such a function is without effect: it leaves out the calls, and nothing fails but speed.
    found = [
        line
        for file in (CSRC / "cpu").iterdir()
        for line in file.read_text().splitlines()
        if re.search(r"\bvoid (ask_for|fetch|prefetch)\w*\(.*\{$", line)
    ]
    assert len(found) > 5
    assert [line for line in found if "CLEBSCH_INLINE" not in line] == []


# Names


def named_files():
    folders = ("python", "csrc", "tests", "benchmarks", "cmake")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in files if "__pycache__" not in path.parts]


def test_no_room_is_called_miscellaneous():
    avoided = {
        "utils",
        "util",
        "common",
        "core",
        "helpers",
        "helper",
        "misc",
        "v2",
        "fast",
        "naive",
        "impl",
        "ref",
    }
    assert not [path for path in named_files() if avoided & set(re.split(r"[._]", path.name))]


@pytest.mark.parametrize("noun", NOUNS)
def test_one_noun_has_one_stem_on_every_floor(noun):
    for place in ("python/clebsch/reference", "python/clebsch/ops", "benchmarks"):
        assert (ROOT / place / f"{noun}.py").is_file(), f"{place}/{noun}.py is missing"
    assert list((ROOT / "tests").glob(f"test_{noun}*.py"))
