"""A small message-passing interatomic potential of the NequIP family, built from clebsch layers.

    x_i    <- embedding of the species of i
    x_i    <- gate( L_s(i) x_i + L sum_j  (L x_j) (x) Y(r_ij) * radial(|r_ij|) )        a few times
    energy  = sum_i ( reference_s(i) + scale * readout(x_i) )

Batzner et al., Nature Communications 13, 2453 (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch

from clebsch.algebra.irreps import Irreps
from clebsch.data import Frame
from clebsch.models.batch import Batch, Structure
from clebsch.models.layer_sets import LayerSet, layer_set
from clebsch.models.radial import BesselBasis

silu, tanh, sigmoid = torch.nn.functional.silu, torch.tanh, torch.sigmoid


@dataclass(frozen=True)
class PotentialConfig:
    """Everything but the trained numbers. Lengths in Angstrom, energies in eV.

    species: atomic numbers; reference_energies: one per species, in float64, outside of the weights so
    that no cast of the model rounds them; scale: energy per unit of network output; num_neighbours:
    mean number of edges into an atom, which normalises the sum over messages.
    """

    species: tuple[int, ...]
    reference_energies: tuple[float, ...]
    scale: float
    num_neighbours: float
    cutoff: float = 4.5
    lmax: int = 2
    hidden: str = "64x0e+32x1o+16x2e"
    num_layers: int = 2
    radial_size: int = 8
    radial_hidden: int = 32
    readout_hidden: int = 32


def fit_config(frames: Sequence[Frame], structures: Sequence[Structure], **settings) -> PotentialConfig:
    """A configuration with species, reference energies and scales taken from training data.

    Reference energies are the least-squares fit of the energies by composition (the shortest such vector
    where compositions leave a choice); scale is the root mean square force component times 1 Angstrom.
    """
    species = species_of(frames)
    composition = torch.tensor([[int((f.numbers == z).sum()) for z in species] for f in frames]).double()
    energies = torch.tensor([f.energy for f in frames], dtype=torch.float64)
    # The gelsd driver: compositions of a single molecule have rank one.
    reference = torch.linalg.lstsq(composition, energies[:, None], driver="gelsd").solution[:, 0]
    forces = torch.cat([torch.as_tensor(f.forces).reshape(-1) for f in frames]).double()
    num_atoms = sum(len(s.species) for s in structures)
    return PotentialConfig(
        species=species,
        reference_energies=tuple(reference.tolist()),
        scale=max(float(forces.square().mean().sqrt()), 1e-3),
        num_neighbours=max(sum(len(s.senders) for s in structures) / num_atoms, 1.0),
        **settings,
    )


def species_of(frames: Sequence[Frame]) -> tuple[int, ...]:
    """The atomic numbers that occur in the frames, each once, in ascending order."""
    return tuple(sorted({int(z) for frame in frames for z in frame.numbers}))


def channelwise_instructions(irreps_in: Irreps, irreps_edge: Irreps, wanted: Irreps):
    """Middle irreps and uvu instructions of all paths that lead to an irrep of `wanted`.

    The middle irreps are sorted, one block per path, so that a Linear on their simplified form mixes
    all paths into the same irrep.
    """
    targets = {ir for _, ir in wanted}
    blocks, paths = [], []
    for i, (mul, ir_in) in enumerate(irreps_in):
        for j, (_, ir_edge) in enumerate(irreps_edge):
            for ir_out in ir_in * ir_edge:
                if ir_out in targets:
                    paths.append((i, j, len(blocks)))
                    blocks.append((mul, ir_out))
    middle, place, _ = Irreps(blocks).sort()
    instructions = sorted(((i, j, place[k], "uvu", True) for i, j, k in paths), key=lambda path: path[2])
    return middle, instructions


def build_gate(layers: LayerSet, irreps: Irreps) -> torch.nn.Module:
    """Even scalars through silu, odd ones through tanh, everything else times a sigmoid of its own."""
    scalars = Irreps([(mul, ir) for mul, ir in irreps if ir.l == 0])
    gated = Irreps([(mul, ir) for mul, ir in irreps if ir.l > 0])
    gates = Irreps([(mul, "0e") for mul, _ in gated])
    activations = [silu if ir.p == 1 else tanh for _, ir in scalars]
    return layers.gate(str(scalars), activations, str(gates), [sigmoid] * len(gates), str(gated))


class SpeciesLinear(torch.nn.Module):
    """A linear map for each species: features (N, irreps_in) and species (N,) to (N, irreps_out).

    All maps are applied to every atom as one, wider, and one result is picked: a few large matrix products
    cost less than many small ones, as long as species are few.
    """

    def __init__(self, layers: LayerSet, irreps_in: Irreps, irreps_out: Irreps, num_species: int):
        super().__init__()
        wide = Irreps([(num_species * mul, ir) for mul, ir in irreps_out])
        self.linear = layers.linear(str(irreps_in), str(wide))
        columns = [
            torch.arange(where.start, where.stop).view(num_species, mul * ir.dim)
            for (mul, ir), where in zip(irreps_out, wide.slices(), strict=True)
        ]
        self.register_buffer("columns", torch.cat(columns, dim=1), persistent=False)

    def forward(self, x: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        """x (N, irreps_in.dim) and species (N,), int64 indices below num_species, to (N, irreps_out.dim)."""
        return self.linear(x).gather(1, self.columns[species])


class Interaction(torch.nn.Module):
    """One round of messages: node features (N, irreps_in) to (N, irreps_out).

    The second line at the head of this file, with the sum over neighbours divided by the root of their mean
    number; a convolution with a gate as in NequIP (Batzner et al. 2022).
    """

    def __init__(
        self,
        layers: LayerSet,
        config: PotentialConfig,
        irreps_in: Irreps,
        irreps_edge: Irreps,
        irreps_out: Irreps,
    ):
        super().__init__()
        self.gate = build_gate(layers, irreps_out)
        before_gate = Irreps(str(self.gate.irreps_in))
        middle, instructions = channelwise_instructions(irreps_in, irreps_edge, before_gate)
        self.linear_in = layers.linear(str(irreps_in), str(irreps_in))
        self.convolution = layers.convolution(str(irreps_in), str(irreps_edge), str(middle), instructions)
        self.radial = layers.fully_connected(
            [config.radial_size, config.radial_hidden, self.convolution.weight_numel], silu
        )
        self.linear_out = layers.linear(str(middle.simplify()), str(before_gate))
        self.self_connection = SpeciesLinear(layers, irreps_in, before_gate, len(config.species))
        self.message_norm = config.num_neighbours**-0.5

    def forward(self, x, y, radial, batch: Batch):
        """x (N, irreps_in.dim), harmonics y (E, irreps_edge.dim) and radial features (E, radial_size) of the
        edges of batch.graph to (N, irreps_out.dim)."""
        messages = self.convolution(self.linear_in(x), y, self.radial(radial), batch.graph)
        own = self.self_connection(x, batch.species)
        return self.gate(own + self.linear_out(messages * self.message_norm))


class Potential(torch.nn.Module):
    """Energies and forces of a batch of structures.

    `layers` chooses who computes, "clebsch" or "e3nn"; parameters have the same names and shapes, so a
    state_dict of one loads into the other.
    """

    def __init__(self, config: PotentialConfig, layers: str = "clebsch"):
        super().__init__()
        self.config, self.layers = config, layers
        chosen = layer_set(layers)
        hidden, edge = Irreps(config.hidden), Irreps.spherical_harmonics(config.lmax)
        scalars = hidden.filter(keep="0e")
        if not scalars.dim:
            raise ValueError(f"hidden must contain 0e, got {config.hidden!r}")
        self.embedding = torch.nn.Embedding(len(config.species), scalars.dim)
        self.harmonics = chosen.spherical_harmonics(str(edge), normalize=True, normalization="component")
        self.radial_basis = BesselBasis(config.radial_size, config.cutoff)
        # Only scalars are read out, so the last round makes nothing else.
        stages = [scalars, *[hidden] * (config.num_layers - 1), scalars]
        self.interactions = torch.nn.ModuleList(
            Interaction(chosen, config, before, edge, after) for before, after in pairwise(stages)
        )
        self.readout = chosen.fully_connected([scalars.dim, config.readout_hidden, 1], silu)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.embedding.weight.dtype

    def forward(self, batch: Batch, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Total energies (molecules,) in eV, float64 whatever the model computes in: a total of
        thousands of eV would lose its meV in float32. `positions` replaces those of the batch."""
        positions = batch.positions if positions is None else positions
        graph = batch.graph
        vectors = positions[graph.senders] + batch.shifts - positions[graph.receivers]
        radial = self.radial_basis(torch.linalg.vector_norm(vectors, dim=1))
        y = self.harmonics(vectors)
        x = self.embedding(batch.species)
        for interaction in self.interactions:
            x = interaction(x, y, radial, batch)
        reference = torch.tensor(self.config.reference_energies, dtype=torch.float64, device=x.device)
        atomic = reference[batch.species] + self.config.scale * self.readout(x)[:, 0].double()
        return atomic.new_zeros(batch.num_molecules).index_add(0, batch.molecule, atomic)

    def energy_and_forces(self, batch: Batch, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """(molecules,) eV and (N, 3) eV/Angstrom; `training` keeps the graph for a loss on both."""
        positions = batch.positions.detach().requires_grad_(True)
        with torch.enable_grad():
            energies = self(batch, positions)
            (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=training)
        return (energies if training else energies.detach()), -gradient

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As torch's, but accepts the constants that either set of layers stores beside the parameters.

        RuntimeError, if strict, naming the parameters that are missing and the entries that are unexpected.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        parameters = {name for name, _ in self.named_parameters()}
        missing = [name for name in result.missing_keys if name in parameters]
        unexpected = [
            name for name in result.unexpected_keys if not _is_layer_constant(name, state_dict[name])
        ]
        if strict and (missing or unexpected):
            raise RuntimeError(
                f"state_dict: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}"
            )
        return type(result)(missing, unexpected)


def _is_layer_constant(name: str, value: torch.Tensor) -> bool:
    return value.numel() == 0 or name.endswith("output_mask") or "_compiled_main" in name


def save_checkpoint(path: str | Path, model: Potential) -> None:
    """Writes configuration and parameters to `path` with torch.save; `load_checkpoint` reads them."""
    torch.save({"config": asdict(model.config), "state_dict": model.state_dict()}, path)


def load_checkpoint(path: str | Path, layers: str = "clebsch") -> Potential:
    """The model saved by `save_checkpoint`, on the CPU; reads tensors and plain values only, runs no code.

    `layers`, "clebsch" or "e3nn", need not be those that it was trained with. ImportError without e3nn.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Potential(PotentialConfig(**saved["config"]), layers)
    model.load_state_dict(saved["state_dict"])
    return model
