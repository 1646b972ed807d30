"""What models of NequIP and of Allegro have to do alike, unmodified and accelerated.

Run in an environment that holds nequip and nequip-allegro, with clebsch on PYTHONPATH.
"""

from functools import partial

import pytest
import torch

pytest.importorskip("nequip.model", reason="needs nequip")

import client_checks as checks
import nequip_samples as samples
from nequip_models import ALLEGRO, NEQUIP, build_allegro, build_nequip, surroundings  # noqa: F401

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@pytest.fixture(params=["nequip", "allegro"])
def build(request):
    pytest.importorskip(f"{request.param}.model", reason=f"needs {request.param}")
    return {"nequip": build_nequip, "allegro": build_allegro}[request.param]


@pytest.mark.parametrize("name", samples.CONFIGURATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs(build, name, dtype):
    stock = build(dtype)
    evaluate = samples.evaluation(samples.batch(name))
    checks.assert_same_outputs(stock.eval(), checks.accelerate_all(stock).eval(), evaluate, TOLERANCE[dtype])


def assert_same(build):
    stock = build()
    fast = checks.accelerate_all(stock)
    given = samples.batch("batch")
    checks.assert_same_outputs(stock, fast, samples.evaluation(given), 1e-10)
    checks.assert_same_gradients(stock, fast, samples.loss_of(given), 1e-10)


@pytest.mark.parametrize("architecture", NEQUIP)
def test_architectures_of_nequip(architecture):
    assert_same(partial(build_nequip, architecture=architecture))


@pytest.mark.parametrize("architecture", ALLEGRO)
def test_architectures_of_allegro(architecture):
    pytest.importorskip("allegro.model", reason="needs nequip-allegro")
    assert_same(partial(build_allegro, architecture=architecture))


def test_as_on_a_gpu(build, monkeypatch):
    given = samples.batch("batch")
    operands = samples.evaluation(given), samples.loss_of(given), monkeypatch, 1e-10
    left = ["sc", "bessel_encode"] if build is build_nequip else ["bessel_encode"]
    checks.assert_same_on_gpu(build(), *operands, left=left)


def test_training_gradients_in_float32(build):
    stock = build(torch.float32)
    loss = samples.loss_of(samples.batch("batch"))
    checks.assert_same_gradients(stock, checks.accelerate_all(stock), loss, 1e-4)


def test_forces_are_gradients_of_the_energy(build):
    samples.assert_forces_are_gradients(checks.accelerate_all(build()).eval(), "crystal")


def test_dynamics_conserve_energy(build):
    stock = build()
    samples.assert_conserves_energy(stock, checks.accelerate_all(stock))


def test_fine_tuning(build):
    stock = build(num_layers=2)
    loss = samples.loss_of(samples.batch("molecule"))
    checks.assert_trains_alike(stock, checks.accelerate_all(stock), loss)


def test_round_trip(build):
    given = samples.batch("crystal")
    checks.assert_round_trip(build(), samples.loss_of(given), samples.evaluation(given), 1e-10)


def test_copies_and_explanation(build):
    fast = checks.accelerate_all(build())
    checks.assert_copies(fast, samples.evaluation(samples.batch("molecule")), 1e-12)
    checks.assert_explained(fast)
