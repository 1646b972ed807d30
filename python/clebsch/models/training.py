"""Training on energies and forces, and the errors of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clebsch.models.batch import Batch, Structure, collate
from clebsch.models.potential import Potential


@dataclass(frozen=True)
class TrainingSettings:
    """`energy_weight` multiplies the squared energy error per atom, in units of the model's scale, beside
    the mean squared force component error in the same units."""

    epochs: int = 30
    batch_size: int = 5
    learning_rate: float = 2e-2
    energy_weight: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors: energy (eV per molecule), forces (eV/Angstrom per component)."""

    energy: float
    forces: float


@dataclass(frozen=True)
class EpochRecord:
    """An epoch, counted from 1: mean loss of its steps (no unit) and errors on the validation structures."""

    epoch: int
    loss: float
    validation: Errors


def loss_function(model: Potential, batch: Batch, energy_weight: float) -> torch.Tensor:
    """Weighted squared errors, in units of the model's scale squared."""
    energies, forces = model.energy_and_forces(batch, training=True)
    scale = model.config.scale
    per_atom = (energies - batch.energies) / (scale * batch.atoms_per_molecule)
    force_error = (forces - batch.forces) / scale
    return force_error.square().mean() + energy_weight * per_atom.square().mean().to(force_error.dtype)


def training_step(
    model: Potential, optimizer: torch.optim.Optimizer, batch: Batch, energy_weight: float
) -> float:
    """One update of the parameters, gradients clipped to norm 10; returns the `loss_function` before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_function(model, batch, energy_weight)
    loss.backward()
    # A rare bad batch early on would otherwise throw Adam's moments off for tens of steps.
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return float(loss.detach())


def learning_rate_factor(fraction: float) -> float:
    """Linear warm-up over the first 2 % of training, then half a cosine down to zero."""
    return min(fraction / 0.02, 0.5 * (1 + np.cos(np.pi * fraction)))


def batches(structures: Sequence[Structure], size: int, dtype: torch.dtype, order=None) -> Iterator[Batch]:
    """Batches of `size` structures, the last one of what is left.

    `dtype` is that of positions and forces; `order`, a permutation of the indices, is ascending if None.
    """
    order = range(len(structures)) if order is None else order
    for start in range(0, len(structures), size):
        yield collate([structures[i] for i in order[start : start + size]], dtype)


def evaluate(model: Potential, structures: Sequence[Structure], batch_size: int = 20):
    """Errors, and the predicted and true force components as one (2, components) array."""
    energy_errors, predicted, true = [], [], []
    for batch in batches(structures, batch_size, model.dtype):
        energies, forces = model.energy_and_forces(batch)
        energy_errors.append((energies - batch.energies).abs())
        predicted.append(forces.reshape(-1))
        true.append(batch.forces.reshape(-1))
    pair = torch.stack([torch.cat(predicted), torch.cat(true)]).double()
    return Errors(
        float(torch.cat(energy_errors).mean()), float((pair[0] - pair[1]).abs().mean())
    ), pair.numpy()


def train(
    model: Potential,
    structures: Sequence[Structure],
    validation: Sequence[Structure],
    settings: TrainingSettings,
    on_step: Callable[[float], None] = lambda loss: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> list[EpochRecord]:
    """Trains in place with Adam, in a new random order every epoch; returns one record per epoch.

    on_step is called with every loss, on_epoch with every record. FloatingPointError where a loss is not
    finite. Structures and validation must not be empty.
    """
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    total = settings.epochs * -(-len(structures) // settings.batch_size)
    step, history = 0, []
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for batch in batches(structures, settings.batch_size, model.dtype, rng.permutation(len(structures))):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(step / total)
            losses.append(training_step(model, optimizer, batch, settings.energy_weight))
            on_step(losses[-1])
        if not np.isfinite(losses).all():
            raise FloatingPointError(f"training diverged in epoch {epoch}: the loss is not finite")
        history.append(EpochRecord(epoch, float(np.mean(losses)), evaluate(model, validation)[0]))
        on_epoch(history[-1])
    return history
