"""The layer nn.SymmetricContraction."""

import copy
import io
import re

import numpy as np
import pytest
import torch

from clebsch import nn, reference
from clebsch.algebra.irreps import Irreps
from clebsch.nn.symmetric_contraction import species_of
from clebsch.nn.symmetric_contraction_basis import coupled_powers


def layer(irreps_in="5x0e+5x1o+5x2e", irreps_out="5x0e+5x1o", correlation=3, species=4, dtype=torch.float64):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return nn.SymmetricContraction(irreps_in, irreps_out, correlation, num_elements=species)
    finally:
        torch.set_default_dtype(before)


def operands(module, nodes=6, species=4, dtype=torch.float64):
    x = torch.randn(nodes, module.num_channels, module._dim, dtype=dtype)
    index = torch.arange(nodes) * 7 % max(1, species - 1)
    return x, index, torch.nn.functional.one_hot(index, species).to(dtype)


def expected(module, x, weight, index):
    coupling = Irreps([(1, ir) for _, ir in module.irreps_in])
    u = [coupled_powers(coupling, ir, module.correlation) for _, ir in module.irreps_out]
    return torch.from_numpy(
        reference.symmetric_contraction(u, *(t.detach().numpy() for t in (x, weight, index)))
    )


def joined(module):
    return torch.cat([w for c in module.contractions for w in c.ascending_weights()], dim=1)


@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
def test_equals_the_reference_for_any_form_of_species(correlation):
    module = layer("5x0e+5x1o", "5x0e+5x1o+5x2e", correlation)
    x, index, one_hot = operands(module)
    exact = expected(module, x, joined(module), index)
    for given in (index, one_hot, one_hot.float(), one_hot.long(), one_hot.clone().requires_grad_()):
        assert torch.allclose(module(x, given), exact, rtol=1e-12, atol=1e-12)
    assert module(x, one_hot).shape == (6, 5 * 9)


def test_attributes_that_are_not_one_hot():
    module = layer()
    x, _, one_hot = operands(module)
    for attrs in (2 * one_hot, one_hot + 0.1, one_hot * 0, one_hot.flip(1) + one_hot, one_hot * float("nan")):
        weight = torch.einsum("nz,zkc->nkc", attrs, joined(module))
        exact = expected(module, x, weight, torch.arange(6))
        assert torch.allclose(module(x, attrs), exact, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_what_counts_as_one_hot():
    one_hot = torch.eye(3)[[2, 0, 0]]
    assert species_of(one_hot).tolist() == [2, 0, 0]
    assert species_of(torch.ones(4, 1)).tolist() == [0] * 4  # MACE's species-agnostic products
    assert species_of(one_hot[:0]).tolist() == []
    for bad in (one_hot * 2, one_hot + one_hot.flip(1), one_hot * 0, one_hot * float("nan"), one_hot[0]):
        assert species_of(bad) is None
    assert species_of(one_hot.requires_grad_()) is None
    with torch.no_grad():
        assert species_of(one_hot) is not None


def test_derivatives_through_the_layer():
    module = layer("2x0e+2x1o", "2x0e+2x1o", 3, species=2)
    x, index, one_hot = operands(module, nodes=3, species=2)
    x.requires_grad_()
    mixed = (one_hot + 0.2).requires_grad_()
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def function(x, attrs, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x, attrs))

    for attrs in (index, one_hot, mixed):
        assert torch.autograd.gradcheck(function, (x, attrs, *parameters.values()))
        assert torch.autograd.gradgradcheck(function, (x, attrs, *parameters.values()))


def test_many_species_cost_no_more_than_those_at_hand(monkeypatch):
    """Weights of species that are absent are not joined; the numbers and gradients are the same."""
    from clebsch.nn import symmetric_contraction as at

    module = layer(species=89)
    x, index, one_hot = operands(module, species=89)
    results = []
    for size in (1, 1 << 40):
        monkeypatch.setattr(at, "_LARGE_WEIGHTS", size)
        out = module(x, one_hot)
        results.append([out, *torch.autograd.grad(out.square().sum(), trained(module))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for bad in (89, -1):
        index[2] = bad
        for size in (1, 1 << 40):
            monkeypatch.setattr(at, "_LARGE_WEIGHTS", size)
            message = f"symmetric_contraction: index must lie in [0, 89), got {bad} for node 2"
            with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
                module(x, index)


def trained(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def test_a_state_dict_brings_its_couplings():
    source, target = layer(), layer()
    with torch.no_grad():
        source.contractions[1].U_matrix_3.mul_(-1)
    state = source.state_dict()
    assert not any("_table" in key for key in state)
    target.load_state_dict(state, strict=True)
    x, _, one_hot = operands(target)
    untouched = layer()
    untouched.load_state_dict({**state, "contractions.1.U_matrix_3": -state["contractions.1.U_matrix_3"]})
    assert torch.equal(target(x, one_hot)[:, :5], untouched(x, one_hot)[:, :5])
    assert not torch.allclose(target(x, one_hot), untouched(x, one_hot))
    # within a model too
    model = torch.nn.Sequential(layer())
    model.load_state_dict({f"0.{key}": value for key, value in state.items()})
    assert torch.equal(model[0](x, one_hot), target(x, one_hot))


def test_names_of_a_state_dict():
    module = layer("4x0e+4x1o", "4x0e+4x2e", 2, species=3)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {
        "contractions.0.weights_max": (3, 2, 4),
        "contractions.0.U_matrix_1": (4, 1),
        "contractions.0.U_matrix_2": (4, 4, 2),
        "contractions.0.weights_0_zeroed": (),
        "contractions.0.weights_max_zeroed": (),
        "contractions.0.weights.0": (3, 1, 4),
        "contractions.1.weights_max": (3, 1, 4),
        "contractions.1.U_matrix_1": (5, 4, 1),
        "contractions.1.U_matrix_2": (5, 4, 4, 1),
        "contractions.1.weights_0_zeroed": (),
        "contractions.1.weights_max_zeroed": (),
        "contractions.1.weights.0": (3, 1, 4),
    }
    # nothing couples one vector and a scalar to 2e
    assert [bool(c.weights_0_zeroed) for c in module.contractions] == [False, True]
    assert not module.contractions[1].weights[0].any()
    assert not module.contractions[1].weights[0].requires_grad


def test_the_table_stays_on_the_cpu_wherever_a_module_is_loaded():
    """map_location moves whatever is a tensor; operators read the table on the CPU."""
    stream = io.BytesIO()
    torch.save(nn.SymmetricContraction("4x0e+4x1o", "4x0e", 2, num_elements=2), stream)
    stream.seek(0)
    loaded = torch.load(stream, map_location="meta", weights_only=False)
    assert loaded.contractions[0].U_matrix_1.is_meta and loaded._table.device.type == "cpu"


def test_types_copies_and_pickles():
    module = layer(dtype=torch.float32)
    x, _, one_hot = operands(module, dtype=torch.float32)
    found = module(x, one_hot)
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    for other in (copy.deepcopy(module), torch.load(stream, weights_only=False)):
        assert torch.equal(other(x, one_hot), found)
        other.load_state_dict(module.state_dict())
    double = copy.deepcopy(module).double()
    assert torch.allclose(double(x.double(), one_hot.double()).float(), found, rtol=1e-4, atol=1e-5)
    # with the couplings of its buffers, which carry the rounding of float32
    u = [[matrix.numpy() for matrix in c.u_matrices()] for c in double.contractions]
    u[0] = [matrix[None] for matrix in u[0]]
    operands_of_reference = x.double(), joined(double).detach(), one_hot.argmax(dim=1)
    exact = reference.symmetric_contraction(u, *(t.numpy() for t in operands_of_reference))
    assert np.allclose(double(x.double(), one_hot).detach().numpy(), exact, rtol=1e-12, atol=1e-12)
    assert double.to("meta")(x.double().to("meta"), one_hot.argmax(dim=1).to("meta")).shape == found.shape


def test_made_without_memory():
    with torch.device("meta"):
        module = layer()
    source = layer()
    x, index, one_hot = operands(source)
    assert module(x.to("meta"), index.to("meta")).shape == (6, 20)
    module = module.to_empty(device="cpu")
    with pytest.raises(
        ValueError, match=r"^symmetric_contraction: table must be that of a ContractionTable$"
    ):
        module(x, index)
    module.load_state_dict(source.state_dict())
    assert torch.equal(module(x, one_hot), source(x, one_hot))
    with torch.device("meta"):
        assigned = layer()
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(assigned(x, one_hot), source(x, one_hot))


def test_compiled_and_exported():
    module = layer("3x0e+3x1o", "3x0e+3x1o", 2)
    x, index, one_hot = operands(module)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for attrs in (one_hot, index, one_hot + 0.5):
        assert torch.allclose(compiled(x, attrs), module(x, attrs), rtol=1e-12)
        assert torch.allclose(compiled(x[:4], attrs[:4]), module(x[:4], attrs[:4]), rtol=1e-12)
    nodes = torch.export.Dim("nodes", min=2)
    program = torch.export.export(module, (x, index), dynamic_shapes=({0: nodes}, {0: nodes}))
    assert torch.allclose(program.module()(x[:3], index[:3]), module(x[:3], index[:3]), rtol=1e-12)


def test_no_nodes():
    module = layer()
    x, index, one_hot = operands(module, nodes=0)
    assert module(x, one_hot).shape == module(x, index).shape == (0, 20)


def test_equivariance():
    from clebsch import o3

    module = layer("2x0e+2x1o+2x2e", "2x0e+2x1o", 3)
    x, _, one_hot = operands(module)
    rotation = o3.rand_matrix(dtype=torch.float64)
    into = o3.Irreps("0e+1o+2e").D_from_matrix(-rotation)
    out = o3.Irreps("2x0e+2x1o").D_from_matrix(-rotation)
    assert torch.allclose(module(x @ into.T, one_hot), module(x, one_hot) @ out.T, rtol=1e-10, atol=1e-10)


def test_text():
    assert repr(layer("4x0e+4x1o", "4x0e", 2, species=1)) == (
        "SymmetricContraction(4x0e+4x1o -> 4x0e | correlation 2, 12 weights)"
    )


def refused(message, *arguments, **named):
    with pytest.raises(ValueError, match="^" + re.escape(f"SymmetricContraction: {message}") + "$"):
        nn.SymmetricContraction(*arguments, **named)


def test_bad_arguments():
    good = ("4x0e+4x1o", "4x0e")
    refused("correlation must be 1 to 4, got 5", *good, 5, num_elements=1)
    refused("correlation must be 1 to 4, got 0", *good, 0, num_elements=1)
    refused("correlation must be 1 to 4, got {'0e': 2}", *good, {"0e": 2}, num_elements=1)
    refused("num_elements must be 1 or more, got None", *good, 2)
    refused("num_elements must be 1 or more, got 0", *good, 2, num_elements=0)
    refused("use_reduced_cg must be False, got True", *good, 2, use_reduced_cg=True, num_elements=1)
    refused("internal_weights must be True, got False", *good, 2, internal_weights=False, num_elements=1)
    refused("irreps_out must have an irrep, got ''", good[0], "", 2, num_elements=1)
    for irreps in ("4x0e+3x1o", "4x1o", ""):
        refused(
            "irreps_in must have scalars 0e and one multiplicity for all irreps, got " + repr(irreps),
            *(irreps, "4x0e", 2),
            num_elements=1,
        )


def test_bad_operands():
    module = layer("4x0e+4x1o", "4x0e", 2, species=3)
    x, _, one_hot = operands(module, species=3)
    for message, arguments in (
        ("x must have shape (nodes, 4, 4), got (6, 16)", (x.flatten(1), one_hot)),
        ("x must have shape (nodes, 4, 4), got (6, 4, 3)", (x[..., 1:], one_hot)),
        ("node_attrs must have shape (6, 3), got (6, 2)", (x, 0 * one_hot[:, 1:])),
        ("node_attrs must have shape (6, 3), got (6, 2)", (x, one_hot[:, :2] + 0.5)),
        ("node_attrs must have shape (6, 3), got (5, 3)", (x, one_hot[1:] + 0.5)),
        ("node_attrs must have shape (6, 3), got (5, 3)", (x, one_hot[1:])),
        ("node_attrs must have shape (6, 3), got (6, 4)", (x, torch.nn.functional.pad(one_hot, (0, 1)))),
        ("node_attrs must have shape (6, 3), got (6, 3, 1)", (x, one_hot.unsqueeze(2))),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(f"SymmetricContraction: {message}") + "$"):
            module(*arguments)
    with pytest.raises(
        TypeError, match=r"^symmetric_contraction: x must be float32 or float64, got bfloat16$"
    ):
        module.bfloat16()(x.bfloat16(), one_hot.bfloat16())


def test_initial_weights_have_the_scale_of_mace():
    module = layer("128x0e+128x1o+128x2e", "128x0e", 3, species=10)
    for weight in joined(module).split(
        [w.shape[1] for w in module.contractions[0].ascending_weights()], dim=1
    ):
        assert np.isclose(weight.std().item(), 1 / weight.shape[1], rtol=0.1)
