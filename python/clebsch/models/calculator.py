"""The trained potential as an ASE calculator. Needs ase: pip install clebsch[demo]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from clebsch.data import Frame
from clebsch.models.batch import collate, prepare
from clebsch.models.potential import Potential, load_checkpoint


class PotentialCalculator(Calculator):
    """Energy (eV) and forces (eV/Angstrom) of any atoms whose species the model was trained on.

    `atoms.calc = PotentialCalculator(model)` or `PotentialCalculator.from_checkpoint("ethanol.pt")`.
    Computes in the model's dtype. Neighbours are found anew at every call.
    """

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(self, model: Potential, **kwargs):
        super().__init__(**kwargs)
        self.model = model

    @classmethod
    def from_checkpoint(cls, path: str | Path, layers: str = "clebsch") -> PotentialCalculator:
        """The calculator of a saved model; arguments and errors of `clebsch.models.load_checkpoint`."""
        return cls(load_checkpoint(path, layers))

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fills `results`: "energy" and "free_energy", both the total energy (eV), and "forces" (N, 3)
        (eV/Angstrom), whatever `properties` names. ValueError for a species that the model does not know.
        """
        super().calculate(atoms, properties, system_changes)
        config = self.model.config
        frame = Frame(
            numbers=self.atoms.numbers,
            positions=self.atoms.positions,
            energy=0.0,
            forces=np.zeros((len(self.atoms), 3)),
            cell=self.atoms.cell.array,
            pbc=self.atoms.pbc,
        )
        batch = collate([prepare(frame, config.species, config.cutoff)], self.model.dtype)
        energies, forces = self.model.energy_and_forces(batch)
        energy = float(energies[0])
        self.results = {"energy": energy, "free_energy": energy, "forces": forces.double().numpy()}
