"""Write tests/data/e3nn-<version>.pt.gz: checkpoints of e3nn's layers, with inputs and what they give.

    python tests/make_checkpoints.py [FOLDER]

in an environment with torch and the e3nn in question (0.4.4, 0.5 or 0.6); clebsch is not needed. On torch
>= 2.6, e3nn 0.4.4 imports only with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 set. The files are committed: run it
again only to add a layer, and then under all three versions. `test_checkpoints.py` builds ours.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROWS = 2


class Layer(NamedTuple):
    """build(o3, nn) makes it of one of the two packages; inputs are the shapes of what it is called with."""

    build: Callable[[Any, Any], torch.nn.Module]
    inputs: tuple[tuple[int, ...], ...]


X = "2x0e+2x1e+2x2e"
MODES = (
    *(
        ("uvw", True),
        ("uvu", True),
        ("uvu", False),
        ("uvv", True),
        ("uvv", False),
        ("uuw", True),
        ("uuw", False),
    ),
    *(("uuu", True), ("uuu", False), ("uvuv", True), ("uvuv", False), ("uvu<v", True), ("uvu<v", False)),
    ("u<vw", True),
)
TRIPLES = ((0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1), (2, 2, 2))


def every_mode(triples, modes=MODES):
    """Irreps of the output and instructions: each mode for each triple of degrees, into its own block."""
    multiplicity = {"uvw": 1, "uvuv": 4, "uvu<v": 1, "u<vw": 3}
    blocks, instructions = [], []
    for l1, l2, l3 in triples:
        for mode, weighted in modes:
            mul = multiplicity.get(mode, 2)
            if mode == "uuw":
                mul = 3 if weighted else 1
            instructions.append((l1, l2, len(blocks), mode, weighted))
            blocks.append(f"{mul}x{l3}e")
    return "+".join(blocks), instructions


def product(triples, modes=MODES, **kwargs):
    irreps_out, instructions = every_mode(triples, modes)
    return lambda o3, nn: o3.TensorProduct(X, X, irreps_out, instructions, **kwargs)


CHANNELS = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 2, 1, "uvu", True)]
CHANNELS += [(1, 0, 1, "uvu", True), (0, 2, 2, "uvu", True), (1, 2, 2, "uvu", True)]


class Network(torch.nn.Module):
    """A graph network of one convolution, with everything that such a network nests."""

    def __init__(self, o3, nn):
        super().__init__()
        self.harmonics = o3.SphericalHarmonics([0, 1, 2], True, "component", irreps_in="1e")
        self.first = o3.Linear("3x0e+2x1e", "4x0e+4x1e", biases=True)
        convolved = "4x0e+4x1e+4x2e"
        self.product = o3.TensorProduct(
            "4x0e+4x1e", "0e+1e+2e", convolved, CHANNELS, shared_weights=False, internal_weights=False
        )
        self.radial = nn.FullyConnectedNet([4, 5, self.product.weight_numel], torch.nn.functional.silu)
        gate = nn.Gate("3x0e", [torch.tanh], "5x0e", [torch.sigmoid], "3x1e+2x2e")
        self.mix = torch.nn.Sequential(o3.Linear(convolved, gate.irreps_in), gate)
        self.last = o3.FullyConnectedTensorProduct(gate.irreps_out, "0e+1e+2e", "2x0e+2x2e")
        self.norm = o3.Norm("2x0e+2x2e")

    def forward(self, x, vectors, lengths):
        senders, receivers = torch.arange(len(vectors)) % len(x), torch.arange(len(vectors)) // 2
        y = self.harmonics(vectors)
        messages = self.product(self.first(x)[senders], y, self.radial(lengths))
        h = self.mix(messages.new_zeros(len(x), messages.shape[1]).index_add(0, receivers, messages))
        return self.norm(self.last(h, y[: len(x)]))


RIGHT = tuple((mode, weighted) for mode, weighted in MODES if "<" not in mode)
LAYERS = {
    "product": Layer(product(TRIPLES[:4]), ((ROWS, 18), (ROWS, 18))),
    "product_changed_signs": Layer(product(TRIPLES[4:]), ((ROWS, 18), (ROWS, 18))),
    "product_right": Layer(product(TRIPLES[1:6], RIGHT[:9], compile_right=True), ((ROWS, 18), (ROWS, 18))),
    "product_general_code": Layer(
        product(TRIPLES[:5], RIGHT, _specialized_code=False), ((ROWS, 18), (ROWS, 18))
    ),
    "product_external": Layer(
        lambda o3, nn: o3.TensorProduct(
            "4x0e+4x1e", "0e+1e+2e", "4x0e+4x1e+4x2e", CHANNELS, shared_weights=False, internal_weights=False
        ),
        ((ROWS, 16), (ROWS, 9), (ROWS, 28)),
    ),
    "product_norm_path": Layer(
        product(TRIPLES[3:6], MODES[:3], irrep_normalization="norm", path_normalization="path"),
        ((ROWS, 18), (ROWS, 18)),
    ),
    "fully_connected": Layer(
        lambda o3, nn: o3.FullyConnectedTensorProduct("2x1e+1x2e", "1x2e+1x1e+1x0e", "2x2e+1x1e+1x0e"),
        ((ROWS, 11), (ROWS, 9)),
    ),
    "fully_connected_133": Layer(
        lambda o3, nn: o3.FullyConnectedTensorProduct("2x1o+1x3o", "1x3o+1x1o", "2x3e+1x1e+1x0e+1x3o"),
        ((ROWS, 13), (ROWS, 10)),
    ),
    "full": Layer(lambda o3, nn: o3.FullTensorProduct("2x1o+0e", "1x2e+1x1o"), ((ROWS, 7), (ROWS, 8))),
    "elementwise": Layer(
        lambda o3, nn: o3.ElementwiseTensorProduct("2x1e+1x2e", "1x2e+2x1e"), ((ROWS, 11), (ROWS, 11))
    ),
    "square": Layer(lambda o3, nn: o3.TensorSquare("2x0e+2x1o+1x2e"), ((ROWS, 13),)),
    "square_connected": Layer(
        lambda o3, nn: o3.TensorSquare("2x0e+2x1e+2x2e", "2x0e+1x1e+2x2e"), ((ROWS, 18),)
    ),
    "linear": Layer(lambda o3, nn: o3.Linear("2x0e+3x1o+1x0e", "4x0e+2x1o+1x2e", biases=True), ((ROWS, 12),)),
    "linear_some": Layer(
        lambda o3, nn: o3.Linear(
            "2x0e+3x1o+2x0e",
            "4x0e+2x1o+1x0e",
            instructions=[(0, 0), (1, 1), (2, 0), (0, 2)],
            biases=[False, False, True],
            path_normalization="path",
        ),
        ((ROWS, 13),),
    ),
    "linear_axes": Layer(
        lambda o3, nn: o3.Linear("2x0e+3x1o", "4x0e+2x1o", f_in=2, f_out=3, biases=True), ((ROWS, 2, 11),)
    ),
    "linear_external": Layer(
        lambda o3, nn: o3.Linear("2x0e+3x1o", "4x0e+2x1o", shared_weights=False), ((ROWS, 11), (ROWS, 14))
    ),
    "norm": Layer(lambda o3, nn: o3.Norm("2x0e+3x1o+1x2e"), ((ROWS, 16),)),
    "norm_squared": Layer(lambda o3, nn: o3.Norm("3x1o+1x2e", squared=True), ((ROWS, 14),)),
    "gate": Layer(
        lambda o3, nn: nn.Gate(
            "3x0e+1x0o", [torch.tanh, torch.abs], "2x0e+1x0o", [torch.sigmoid, torch.tanh], "2x1o+1x2e"
        ),
        ((ROWS, 18),),
    ),
    "activation": Layer(
        lambda o3, nn: nn.Activation("2x0e+1x0o+1x1o", [torch.nn.functional.silu, torch.tanh, None]),
        ((ROWS, 6),),
    ),
    "norm_activation": Layer(
        lambda o3, nn: nn.NormActivation(o3.Irreps("2x1o+2x0e"), torch.sigmoid, bias=True), ((ROWS, 8),)
    ),
    "batch_norm": Layer(lambda o3, nn: nn.BatchNorm("2x0e+3x1o+1x0o"), ((ROWS, 12),)),
    "batch_norm_norm": Layer(
        lambda o3, nn: nn.BatchNorm("2x0e+3x1o", affine=False, normalization="norm"), ((ROWS, 11),)
    ),
    "dropout": Layer(lambda o3, nn: nn.Dropout("2x0e+1x1o", 0.5), ((ROWS, 5),)),
    "extract": Layer(
        lambda o3, nn: nn.Extract("2x0e+1x1o+1x2e", ["1x1o", "1x2e+2x0e"], [(1,), (2, 0)]), ((ROWS, 10),)
    ),
    "fully_connected_net": Layer(
        lambda o3, nn: nn.FullyConnectedNet([3, 4, 2], torch.tanh, out_act=True), ((ROWS, 3),)
    ),
    "harmonics": Layer(
        lambda o3, nn: o3.SphericalHarmonics([2, 0, 1, 3, 1], True, normalization="component"), ((ROWS, 3),)
    ),
    "harmonics_of_vectors": Layer(
        lambda o3, nn: o3.SphericalHarmonics("0e+1o+2e+3o+4e", False, normalization="norm"), ((ROWS, 3),)
    ),
    "network": Layer(Network, ((4, 9), (8, 3), (8, 4))),
    "reduced": Layer(lambda o3, nn: o3.ReducedTensorProducts("ij=ji", i="1o+2e"), ((ROWS, 8), (ROWS, 8))),
    "reduced_three": Layer(
        lambda o3, nn: o3.ReducedTensorProducts("ijk=jik=ikj", i="0e+1o"), ((ROWS, 4),) * 3
    ),
}


def outputs(module: torch.nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the module gives, as a list whatever it returns."""
    with torch.no_grad():
        out = module(*inputs)
    return [part.clone() for part in out] if isinstance(out, (list, tuple)) else [out.clone()]


def seeded(layer: Layer, o3: Any, nn: Any, seed: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """The layer with random numbers in all it learns, in evaluation mode, and random inputs."""
    torch.manual_seed(seed)
    module = layer.build(o3, nn)
    inputs = [torch.randn(shape) for shape in layer.inputs]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        for name, buffer in module.named_buffers():
            if name.startswith("running_"):
                buffer.uniform_(0.5, 2.0)
    return module.eval(), inputs


def main() -> None:
    import e3nn
    from e3nn import nn, o3

    torch.set_default_dtype(torch.float64)
    saved: dict[str, Any] = {}
    for seed, (name, layer) in enumerate(LAYERS.items()):
        module, inputs = seeded(layer, o3, nn, seed)
        saved[name] = {
            # copies: a view would be saved with the whole of its storage
            "state": {key: value.clone() for key, value in module.state_dict().items()},
            "inputs": inputs,
            "outputs": outputs(module, inputs),
        }
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    # The older format: the newer one pads every tensor to 64 bytes and more. Tables are mostly zeros.
    with gzip.GzipFile(folder / f"e3nn-{e3nn.__version__}.pt.gz", "wb", mtime=0) as file:
        torch.save(saved, file, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
