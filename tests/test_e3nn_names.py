"""Names that are e3nn's: docs/e3nn.md lists whose they are, and attribute access finds them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clebsch import nn, o3

e3nn_o3 = pytest.importorskip("e3nn.o3")
import e3nn.io  # noqa: E402
import e3nn.math  # noqa: E402
import e3nn.nn  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "e3nn.md"
OURS, THEIRS = {"o3": o3, "nn": nn}, {"o3": e3nn_o3, "nn": e3nn.nn}


def table(heading):
    """Whose each name of the table under a heading is; a name may occur only once."""
    section = PAGE.read_text().split(f"\n### {heading}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (`.*`) \| (\w+) \|$", section, re.M)
    pairs = [(name, whose) for names, whose in rows for name in re.findall(r"`([^`]+)`", names)]
    assert pairs and len(dict(pairs)) == len(pairs)
    assert {whose for _, whose in pairs} <= {"kernel", "torch", "e3nn"}
    return dict(pairs)


@pytest.mark.parametrize("room", ["o3", "nn"])
def test_the_page_lists_every_name_and_whose_it_is(room):
    listed = table(room)
    assert set(listed) == set(THEIRS[room].__all__)
    assert {name for name, whose in listed.items() if whose != "e3nn"} == set(listed) & set(
        OURS[room].__all__
    )
    further = set(OURS[room].__all__) - set(listed)
    assert all(f"`{room}.{name}`" in PAGE.read_text() for name in further)


def test_the_page_lists_what_has_no_counterpart():
    listed = table("io and math")
    assert set(listed) == {*e3nn.io.__all__, *e3nn.math.__all__} and set(listed.values()) == {"e3nn"}


@pytest.mark.parametrize("room", ["o3", "nn"])
def test_every_name_resolves(room):
    for name, whose in table(room).items():
        value = getattr(OURS[room], name)
        origin = getattr(value, "__module__", None) or value.__name__
        assert origin.split(".")[0] == ("e3nn" if whose == "e3nn" else "clebsch"), name


def test_import_statements_of_names_and_modules():
    from clebsch.nn import S2Activation, models
    from clebsch.o3 import ToS2Grid, irrep

    assert (S2Activation, ToS2Grid) == (e3nn.nn.S2Activation, e3nn_o3.ToS2Grid)
    assert (models.__name__, irrep.__name__) == ("e3nn.nn.models", "e3nn.o3.irrep")


def test_layers_of_e3nn_take_our_irreps():
    torch.set_default_dtype(torch.float64)
    layer = nn.S2Activation(o3.Irreps("0e+1o+2e"), torch.tanh, 20)
    expected = e3nn.nn.S2Activation("0e+1o+2e", torch.tanh, 20)
    x = torch.randn(4, 9)
    assert torch.equal(layer(x), expected(x))
    assert o3.Linear(layer.irreps_out, e3nn.io.SphericalTensor(1, 1, -1)).irreps_out == o3.Irreps("0e+1o")
    assert o3.Irreps(e3nn.io.CartesianTensor("ij=ji")) == o3.Irreps("0e+2e")


@pytest.mark.parametrize("room", ["o3", "nn"])
def test_names_that_neither_has(room):
    message = f"module 'clebsch.{room}' has no attribute 'Nothing', nor has e3nn.{room}"
    with pytest.raises(AttributeError, match=f"^{re.escape(message)}$"):
        _ = OURS[room].Nothing
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        exec(f"from clebsch.{room} import Nothing")
    with pytest.raises(AttributeError, match=rf"^module 'clebsch\.{room}' has no attribute '_codegen'$"):
        _ = OURS[room]._codegen
    assert not hasattr(OURS[room], "Nothing")


def run(program):
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


REPORT = """
def report(program):
    try:
        exec(program)
        print("nothing")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("room, name", [("o3", "ToS2Grid"), ("nn", "S2Activation")])
def test_e3nn_is_not_installed(room, name):
    missing = (
        f"module 'clebsch.{room}' has no attribute '{name}', "
        "and e3nn, whose attribute would be taken, is not installed"
    )
    printed = run(
        f"{REPORT}\nimport sys; sys.modules['e3nn'] = None\nfrom clebsch import nn, o3\n"
        f"report('{room}.{name}')\nreport('from clebsch.{room} import {name}')\n"
        f"print(hasattr({room}, '{name}'), {room}.__all__[0] in dir({room}))\n"
        f"report('from clebsch.{room} import *')\nreport('import clebsch.{room}.{name}')\n"
        f"report('from clebsch.nn import gate')"
    )
    assert printed.splitlines() == [
        f"AttributeError: {missing}",
        f"ImportError: {missing}",
        "False True",
        "nothing",
        f"ModuleNotFoundError: No module named 'clebsch.{room}.{name}'",
        "nothing",
    ]


def test_e3nn_cannot_be_imported(tmp_path):
    """An e3nn that its torch is too new for, or that lacks a package of its own."""
    (tmp_path / "e3nn").mkdir()
    for text, reason in (
        ("raise RuntimeError('old pickle')", "old pickle"),
        ("import opt_einsum_fxx", "No module named 'opt_einsum_fxx'"),
    ):
        (tmp_path / "e3nn" / "__init__.py").write_text(text)
        printed = run(
            f"{REPORT}\nimport sys; sys.path.insert(0, {str(tmp_path)!r}); sys.dont_write_bytecode = True\n"
            "from clebsch import nn\nreport('nn.S2Activation')"
        )
        assert printed == (
            "AttributeError: module 'clebsch.nn' has no attribute 'S2Activation', "
            f"and e3nn cannot be imported: {reason}"
        )


@pytest.mark.parametrize("name", ["math", "io", "util"])
def test_other_packages_of_e3nn_stay_e3nns(name):
    import clebsch

    message = f"module 'clebsch' has no attribute '{name}': import e3nn.{name}, which works beside clebsch"
    with pytest.raises(AttributeError, match=f"^{re.escape(message)}$"):
        getattr(clebsch, name)
    with pytest.raises(ModuleNotFoundError, match=rf"No module named 'clebsch\.{name}'"):
        exec(f"from clebsch.{name} import anything")
