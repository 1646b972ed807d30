"""Interatomic potentials built from clebsch layers."""

from clebsch.models.potential import (
    Potential,
    PotentialConfig,
    fit_config,
    load_checkpoint,
    save_checkpoint,
)

__all__ = ["Potential", "PotentialConfig", "fit_config", "load_checkpoint", "save_checkpoint"]
