"""What importing costs: no compiler, no e3nn, and no torch where it is not needed."""

import subprocess
import sys

import pytest


def modules_after(statements: str) -> set[str]:
    """Names of the modules that a fresh process has loaded."""
    command = f"{statements}\nimport sys; print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return set(done.stdout.split("loaded:")[1].split())


def test_layers_load_neither_the_compiler_nor_e3nn():
    loaded = modules_after("import torch; from clebsch import Graph, nn, o3")
    # torch._dynamo alone takes seconds; some of torch.compiler's decorators import it.
    assert not {"torch._dynamo", "torch._inductor", "e3nn", "scipy"} & loaded


@pytest.mark.parametrize(
    "statement",
    [
        "import clebsch",
        "import clebsch; clebsch.__version__",
        "from clebsch import algebra",
        "import clebsch.numpy",
    ],
)
def test_torch_is_loaded_only_where_needed(statement):
    assert "torch" not in modules_after(statement)


def test_every_public_name_resolves():
    import clebsch

    for name in clebsch.__all__:
        assert getattr(clebsch, name) is not None
    assert set(clebsch.__all__) <= set(dir(clebsch))
    with pytest.raises(AttributeError, match=r"module 'clebsch' has no attribute 'nothing'"):
        _ = clebsch.nothing
