"""A convolution over neighbours, as in e3nn's guide: harmonics of the edges, a product with weights that are
made from distances, a sum over neighbours. Two of them learn a tensor of every point's surroundings.
"""

import torch
from e3nn import nn, o3
from e3nn.math import soft_one_hot_linspace

RADIUS, NUM_POINTS, NUM_RADIAL = 1.2, 30, 6
IRREPS_EDGE = "1x0e+1x1o+1x2e"
IRREPS_TARGET = "1x0e+1x1o+1x2e"


class Convolution(torch.nn.Module):
    def __init__(self, irreps_in, irreps_edge, irreps_out, num_neighbors):
        super().__init__()
        self.num_neighbors = num_neighbors
        self.product = o3.FullyConnectedTensorProduct(
            irreps_in, irreps_edge, irreps_out, internal_weights=False, shared_weights=False
        )
        self.radial = nn.FullyConnectedNet(
            [NUM_RADIAL, 16, self.product.weight_numel], torch.nn.functional.silu
        )
        self.irreps_out = self.product.irreps_out

    def forward(self, features, senders, receivers, harmonics, radial):
        messages = self.product(features[senders], harmonics, self.radial(radial))
        out = features.new_zeros(features.shape[0], messages.shape[1])
        return out.index_add(0, receivers, messages) / self.num_neighbors**0.5


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        hidden = o3.Irreps("8x0e+4x0o+4x1e+6x1o+3x2e")
        self.first = Convolution("1x0e", IRREPS_EDGE, hidden, num_neighbors=6)
        self.second = Convolution(self.first.irreps_out, IRREPS_EDGE, IRREPS_TARGET, num_neighbors=6)

    def forward(self, positions):
        distances = torch.cdist(positions, positions)
        near = (distances < RADIUS) & ~torch.eye(len(positions), dtype=torch.bool)
        receivers, senders = near.nonzero().T
        vectors = positions[senders] - positions[receivers]
        harmonics = o3.spherical_harmonics(
            o3.Irreps(IRREPS_EDGE), vectors, normalize=True, normalization="component"
        )
        radial = soft_one_hot_linspace(
            vectors.norm(dim=1), 0.0, RADIUS, NUM_RADIAL, basis="smooth_finite", cutoff=True
        )
        radial = radial * NUM_RADIAL**0.5
        features = self.first(positions.new_ones(len(positions), 1), senders, receivers, harmonics, radial)
        return self.second(features, senders, receivers, harmonics, radial)


def make_model():
    return Model()


def surroundings(positions):
    """What is learned: the harmonics of the mean vector to the three nearest points."""
    nearest = torch.cdist(positions, positions).topk(4, largest=False).indices[:, 1:]
    means = (positions[nearest] - positions[:, None]).mean(1)
    return o3.SphericalHarmonics(o3.Irreps(IRREPS_TARGET), normalize=False, normalization="component")(means)


def train(model, steps, seed=0):
    torch.manual_seed(seed)
    positions = 2.0 * torch.rand(NUM_POINTS, 3)
    target = surroundings(positions)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = (model(positions) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    for step, loss in enumerate(train(make_model(), 50)):
        print(step, loss)
