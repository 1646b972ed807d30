"""From labelled frames to what the network eats: species indices, edges, one block graph per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clebsch.data import Frame
from clebsch.graph import Graph

# Above this many atoms all pairs cost more than a cell list.
ALL_PAIRS_LIMIT = 300


def neighbours(
    positions: np.ndarray, cutoff: float, cell: np.ndarray | None = None, pbc: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directed edges closer than `cutoff`: senders (E,), receivers (E,), shifts (E, 3) in Angstrom.

    Sorted by receiver. The edge vector is positions[senders] + shifts - positions[receivers].
    """
    periodic = pbc is not None and bool(np.any(pbc))
    if periodic or len(positions) > ALL_PAIRS_LIMIT:
        from ase.neighborlist import primitive_neighbor_list

        pbc = np.zeros(3, dtype=bool) if pbc is None else pbc
        cell = np.zeros((3, 3)) if cell is None else np.asarray(cell)
        receivers, senders, images = primitive_neighbor_list("ijS", pbc, cell, positions, cutoff)
        return senders, receivers, images @ cell
    difference = positions[:, None] - positions[None, :]
    close = (difference * difference).sum(axis=2) < cutoff * cutoff
    np.fill_diagonal(close, False)
    receivers, senders = np.nonzero(close)
    return senders, receivers, np.zeros((len(senders), 3))


@dataclass(frozen=True)
class Structure:
    """A frame with its species indices and edges, made once and batched many times.

    species (N,) indices into the model's list; positions (N, 3) and shifts (E, 3) in Angstrom; senders and
    receivers (E,); energy eV; forces (N, 3) eV/Angstrom.
    """

    species: np.ndarray
    positions: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    shifts: np.ndarray
    energy: float
    forces: np.ndarray


def prepare(frame: Frame, species: Sequence[int], cutoff: float) -> Structure:
    """The structure of a frame, with all edges shorter than `cutoff` (Angstrom).

    `species` lists the atomic numbers that the model knows; another one in the frame is a ValueError.
    """
    unknown = sorted(set(frame.numbers.tolist()) - set(species))
    if unknown:
        raise ValueError(f"atomic numbers must be among {sorted(species)}, got {unknown}")
    order = np.argsort(species)
    indices = order[np.searchsorted(np.asarray(species)[order], frame.numbers)]
    edges = neighbours(frame.positions, cutoff, frame.cell, frame.pbc)
    return Structure(indices, frame.positions, *edges, frame.energy, frame.forces)


@dataclass(frozen=True)
class Batch:
    """Several structures as one graph of separate blocks.

    species (N,) indices; positions (N, 3) and shifts (E, 3) in Angstrom; graph over the N atoms;
    molecule (N,) says whose atom it is; energies (molecules,) eV in float64; forces (N, 3) eV/Angstrom.
    """

    species: torch.Tensor
    positions: torch.Tensor
    shifts: torch.Tensor
    graph: Graph
    molecule: torch.Tensor
    energies: torch.Tensor
    forces: torch.Tensor

    @property
    def num_molecules(self) -> int:
        """Number of structures in the batch."""
        return self.energies.shape[0]

    @property
    def atoms_per_molecule(self) -> torch.Tensor:
        """Number of atoms of each structure, (molecules,)."""
        return torch.bincount(self.molecule, minlength=self.num_molecules)


def collate(structures: Sequence[Structure], dtype: torch.dtype = torch.float32) -> Batch:
    """One batch of some structures, at least one; atoms and edges keep their order.

    `dtype` is that of positions, shifts and forces, in Angstrom and eV/Angstrom; energies (eV) are float64.
    """
    sizes = [len(s.species) for s in structures]
    offsets = np.concatenate([[0], np.cumsum(sizes)])

    def joined(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.concatenate([getattr(s, name) for s in structures]), dtype=dtype)

    def edge_ends(name: str) -> torch.Tensor:
        parts = [getattr(s, name) + offset for s, offset in zip(structures, offsets[:-1], strict=True)]
        return torch.as_tensor(np.concatenate(parts), dtype=torch.int64)

    return Batch(
        species=joined("species", torch.int64),
        positions=joined("positions", dtype),
        shifts=joined("shifts", dtype),
        graph=Graph(edge_ends("senders"), edge_ends("receivers"), int(offsets[-1])),
        molecule=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        energies=torch.tensor([s.energy for s in structures], dtype=torch.float64),
        forces=joined("forces", dtype),
    )
