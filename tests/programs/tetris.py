"""Which of eight tetrominoes is it? Two of them are mirror images, which only an odd scalar tells apart."""

import torch
from e3nn import nn, o3

SHAPES = {
    "left-handed": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)],
    "right-handed": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, -1, 0)],
    "square": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
    "line": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)],
    "corner": [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)],
    "L": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)],
    "T": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1)],
    "zigzag": [(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)],
}
HIDDEN_SCALARS, HIDDEN_GATED = "12x0e+6x0o", "6x1o+4x1e+3x2e"


class Layer(torch.nn.Module):
    """Messages from neighbours and the block itself, gated."""

    def __init__(self, irreps_in, irreps_edge):
        super().__init__()
        num_gates = o3.Irreps(HIDDEN_GATED).num_irreps
        self.gate = nn.Gate(
            HIDDEN_SCALARS,
            [torch.nn.functional.silu, torch.tanh],
            f"{num_gates}x0e",
            [torch.sigmoid],
            HIDDEN_GATED,
        )
        self.message = o3.FullyConnectedTensorProduct(irreps_in, irreps_edge, self.gate.irreps_in)
        self.itself = o3.Linear(irreps_in, self.gate.irreps_in)
        self.irreps_out = self.gate.irreps_out

    def forward(self, features, senders, receivers, harmonics):
        messages = self.message(features[senders], harmonics)
        return self.gate(self.itself(features).index_add(0, receivers, messages / 2**0.5))


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        irreps_edge = o3.Irreps.spherical_harmonics(2)
        self.harmonics = o3.SphericalHarmonics(irreps_edge, normalize=True, normalization="component")
        irreps, layers = o3.Irreps("1x0e"), []
        for _ in range(3):
            layers.append(Layer(irreps, irreps_edge))
            irreps = layers[-1].irreps_out
        self.layers = torch.nn.ModuleList(layers)
        self.last = o3.Linear(irreps, "1x0o+7x0e")

    def forward(self, positions):
        """Positions (shapes, 4, 3) to scores (shapes, 8)."""
        shapes = len(positions)
        near = (torch.cdist(positions, positions) < 1.1) & ~torch.eye(4, dtype=torch.bool)
        shape, receivers, senders = near.nonzero().T
        harmonics = self.harmonics(positions[shape, senders] - positions[shape, receivers])
        features = positions.new_ones(4 * shapes, 1)
        for layer in self.layers:
            features = layer(features, 4 * shape + senders, 4 * shape + receivers, harmonics)
        odd, handed, *others = self.last(features).reshape(shapes, 4, 8).mean(1).T
        return torch.stack([handed + odd, handed - odd, *others], dim=1)


def make_model():
    return Classifier()


def rotated_shapes():
    positions = torch.tensor(list(SHAPES.values()), dtype=torch.get_default_dtype())
    return torch.einsum("sij,skj->ski", o3.rand_matrix(len(positions)), positions)


def train(model, steps, seed=0):
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    labels = torch.arange(len(SHAPES))
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(rotated_shapes()), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def accuracy(model):
    """Share of the shapes, rotated anew, that are recognised."""
    with torch.no_grad():
        guesses = model(rotated_shapes()).argmax(1)
    return float((guesses == torch.arange(len(SHAPES))).double().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    model = make_model()
    for step, loss in enumerate(train(model, 40)):
        print(step, loss)
    print("accuracy", accuracy(model))
