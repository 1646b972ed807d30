"""Checkpoints that e3nn 0.4.4, 0.5 and 0.6 wrote load into our layers, ours into e3nn's: the same numbers.

The files come from `make_checkpoints.py`, run under each version.
"""

import copy
import gzip
import io
import pickle
from functools import cache
from pathlib import Path

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3 as e3nn_o3

from clebsch import nn, o3
from clebsch.o3.coupling_tables import CouplingTables, relative_sign, stored_triple
from make_checkpoints import LAYERS, outputs, seeded

VERSIONS = ("0.4.4", "0.5.9", "0.6.0")
# Triples whose sign differs between e3nn 0.4 and later ones, among the degrees that are tested.
CHANGED = {(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1)}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


@cache
def checkpoint(version):
    with gzip.open(Path(__file__).parent / "data" / f"e3nn-{version}.pt.gz") as file:
        return torch.load(io.BytesIO(file.read()), weights_only=True)


def ours(name):
    return LAYERS[name].build(o3, nn).eval()


def theirs(name):
    return LAYERS[name].build(e3nn_o3, e3nn_nn).eval()


def assert_gives(module, saved, tolerance=1e-12):
    """Outputs within `tolerance` of the largest number of each: e3nn's 0.4 has tables that are 1e-15 off."""
    found = outputs(module, saved["inputs"])
    assert len(found) == len(saved["outputs"])
    for value, expected in zip(found, saved["outputs"], strict=True):
        assert value.shape == expected.shape and value.dtype == expected.dtype
        assert (value - expected).abs().max() <= tolerance * expected.abs().max()


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_all_layers_are_ours():
    assert not [name for name in LAYERS if type(ours(name)).__module__.startswith("e3nn.")]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_has_every_layer(version):
    assert checkpoint(version).keys() == LAYERS.keys()


def test_the_files_differ_in_the_signs():
    """Else nothing below would test them."""
    flipped = {
        triple
        for saved in checkpoint("0.4.4").values()
        for key, table in saved["state"].items()
        for triple in [stored_triple(key)]
        if triple is not None and relative_sign(table, triple) < 0
    }
    assert flipped == CHANGED
    old, new = (checkpoint(version)["fully_connected_133"] for version in ("0.4.4", "0.6.0"))
    assert torch.equal(old["state"]["weight"], new["state"]["weight"])
    assert not torch.allclose(old["outputs"][0], new["outputs"][0])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", LAYERS)
class TestEveryLayer:
    def test_loads_to_the_same_numbers(self, name, version):
        saved, module = checkpoint(version)[name], ours(name)
        keys = saved["state"].keys()
        module.load_state_dict(saved["state"], strict=True)
        assert_gives(module, saved)
        assert saved["state"].keys() == keys

    def test_what_is_saved_again_is_what_was_loaded(self, name, version):
        saved, module, again = checkpoint(version)[name], ours(name), ours(name)
        module.load_state_dict(saved["state"])
        state = module.state_dict()
        assert state.keys() == saved["state"].keys()
        for key, value in saved["state"].items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-14, check_stride=False)
        again.load_state_dict(state)
        assert_gives(again, saved)

    def test_ours_loads_into_e3nn(self, name, version):
        """Also on the way from e3nn 0.4.4 to 0.6: our file carries the signs."""
        saved, module, target = checkpoint(version)[name], ours(name), theirs(name)
        module.load_state_dict(saved["state"])
        target.load_state_dict(module.state_dict(), strict=True)
        assert_gives(target, saved)

    def test_single_precision(self, name, version):
        saved = checkpoint(version)[name]
        state = {k: v.float() if v.is_floating_point() else v for k, v in saved["state"].items()}
        module = ours(name).float()
        module.load_state_dict(state)
        single = {key: [value.float() for value in saved[key]] for key in ("inputs", "outputs")}
        assert_gives(module, single, 1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_whole_modules(name, way):
    """With the signs of e3nn 0.4.4, which are in no parameter."""
    saved, module = checkpoint("0.4.4")[name], ours(name)
    module.load_state_dict(saved["state"])
    again = {"deepcopy": copy.deepcopy, "pickle": pickled, "save": saved_and_loaded}[way](module)
    assert again.state_dict().keys() == module.state_dict().keys()
    assert_gives(again, saved)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert_gives(again, saved)


@pytest.mark.parametrize("name", LAYERS)
def test_fresh_modules_have_the_same_state(name):
    """Names, shapes and numbers, but for what is drawn at random."""
    mine, e3nns = (seeded(LAYERS[name], *package, seed=3)[0] for package in ((o3, nn), (e3nn_o3, e3nn_nn)))
    assert mine.state_dict().keys() == e3nns.state_dict().keys()
    for key, value in e3nns.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[key], value, rtol=0, atol=1e-14)
    e3nns.load_state_dict(mine.state_dict(), strict=True)
    mine.load_state_dict(e3nns.state_dict(), strict=True)


TABLES = [
    (name, key)
    for name in ("product_changed_signs", "product_right", "fully_connected_133", "full", "network")
    for key in checkpoint("0.4.4")[name]["state"]
    if "_w3j_" in key
]


@pytest.mark.parametrize("name, key", TABLES)
@pytest.mark.parametrize("wrong", [lambda t: 2 * t, lambda t: t + 1e-3, lambda t: t[:-1], lambda t: t.long()])
def test_a_tampered_table_is_named(name, key, wrong):
    state = checkpoint("0.4.4")[name]["state"]
    module = ours(name)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    owner = key.rpartition("_compiled_main")[0]
    with pytest.raises(RuntimeError) as error:
        module.load_state_dict({**state, key: wrong(state[key])})
    triple = tuple(map(int, key.split("_")[-3:]))
    assert (
        f"{key} is not +1 or -1 times the coupling coefficients of l = {triple}: "
        "the checkpoint was written under another convention"
    ) in str(error.value)
    for k, v in module.state_dict().items():
        assert torch.equal(v, before[k]) or not k.startswith(owner)


def test_two_tables_that_contradict_each_other():
    state = dict(checkpoint("0.4.4")["product_right"]["state"])
    key = "_compiled_main_right._w3j_1_2_2"
    state[key] = -state[key]
    with pytest.raises(RuntimeError) as error:
        ours("product_right").load_state_dict(state)
    assert (
        f"{key} has the opposite sign of the other table of l = (1, 2, 2): no product computes with both"
    ) in str(error.value)


@pytest.mark.parametrize("name", ["product_changed_signs", "fully_connected_133", "network", "full"])
def test_a_checkpoint_without_tables_has_the_signs_of_e3nn_05(name):
    saved, module = checkpoint("0.6.0")[name], ours(name)
    bare = {key: value for key, value in saved["state"].items() if "_compiled_main" not in key}
    module.load_state_dict(checkpoint("0.4.4")[name]["state"])
    module.load_state_dict(bare, strict=True)
    assert_gives(module, saved)


def test_names_of_code_that_was_compiled_or_traced():
    saved, module = checkpoint("0.4.4")["fully_connected"], ours("fully_connected")
    state = {key.replace("_right._w3j", "_right._orig_mod._w3j"): t for key, t in saved["state"].items()}
    assert state.keys() != saved["state"].keys()
    state["_compiled_main_left_right._tensor_constant0"] = torch.zeros(1)
    module.load_state_dict(state, strict=True)
    assert_gives(module, saved)


def test_other_keys_stay_unexpected():
    module = ours("fully_connected")
    state = module.state_dict() | {"_compiled_main_left_right.other": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*: "_compiled_main_left_right.other"'):
        module.load_state_dict(state)


def test_signs_without_tables_of_our_own_are_saved_too():
    arguments = ("2x1e+1x2e", "1x2e", "2x2e")
    saved = e3nn_o3.FullyConnectedTensorProduct(*arguments).state_dict()
    saved = {key: -value if key.endswith("_w3j_1_2_2") else value for key, value in saved.items()}
    module = o3.FullyConnectedTensorProduct(*arguments, compile_left_right=False)
    assert not any(isinstance(child, CouplingTables) for child in module.children())
    module.load_state_dict(saved)
    again = o3.FullyConnectedTensorProduct(*arguments)
    again.load_state_dict(module.state_dict())
    assert again.plan == module.plan != o3.FullyConnectedTensorProduct(*arguments).plan


def test_built_on_the_meta_device():
    saved = checkpoint("0.4.4")["network"]
    for assign in (True, False):
        with torch.device("meta"):
            module = ours("network")
        if not assign:
            module.to_empty(device="cpu")
        module.load_state_dict(saved["state"], assign=assign)
        assert not any(value.is_meta for value in module.state_dict().values())
        assert_gives(module, saved)
        state = module.state_dict()
        assert all(torch.allclose(state[k], v, rtol=0, atol=1e-14) for k, v in saved["state"].items())


def test_the_state_is_a_state_of_the_module():
    """Tools that look every key up as an attribute find it."""
    module = ours("network")
    for key, value in module.state_dict().items():
        owner, _, name = key.rpartition(".")
        assert getattr(module.get_submodule(owner), name).shape == value.shape
    _, inputs = seeded(LAYERS["network"], o3, nn, 0)
    assert torch.equal(
        torch.func.functional_call(module, module.state_dict(), tuple(inputs)), module(*inputs)
    )
