"""A small SE(3)-transformer (https://arxiv.org/abs/2006.10503): attention among neighbours, whose keys and
values are products with weights made from distances and whose strength fades out at a cutoff.
"""

import torch
from e3nn import nn, o3
from e3nn.math import soft_one_hot_linspace, soft_unit_step

CUTOFF, NUM_RADIAL, NUM_POINTS = 1.3, 8, 24
IRREPS_IN, IRREPS_OUT = "3x0e+1x1o", "2x0e+1x1o"


def radial_product(irreps_in, irreps_edge, irreps_out):
    """A product with weights for every edge, and the net that makes them of its length."""
    product = o3.FullyConnectedTensorProduct(irreps_in, irreps_edge, irreps_out, shared_weights=False)
    return product, nn.FullyConnectedNet([NUM_RADIAL, 12, product.weight_numel], act=torch.nn.functional.silu)


class Attention(torch.nn.Module):
    def __init__(self, irreps_in, irreps_query, irreps_key, irreps_out):
        super().__init__()
        irreps_edge = o3.Irreps.spherical_harmonics(2)
        self.harmonics = o3.SphericalHarmonics(irreps_edge, normalize=True, normalization="component")
        self.query = o3.Linear(irreps_in, irreps_query)
        self.key, self.key_weight = radial_product(irreps_in, irreps_edge, irreps_key)
        self.value, self.value_weight = radial_product(irreps_in, irreps_edge, irreps_out)
        self.similarity = o3.FullyConnectedTensorProduct(irreps_query, irreps_key, "0e")

    def forward(self, features, positions):
        distances = torch.cdist(positions, positions)
        near = (distances < CUTOFF) & ~torch.eye(len(positions), dtype=torch.bool)
        receivers, senders = near.nonzero().T
        vectors = positions[senders] - positions[receivers]
        length = vectors.norm(dim=1)
        harmonics = self.harmonics(vectors)
        radial = soft_one_hot_linspace(length, 0.0, CUTOFF, NUM_RADIAL, basis="smooth_finite", cutoff=True)
        radial = radial * NUM_RADIAL**0.5
        fade = soft_unit_step(10.0 * (1.0 - length / CUTOFF))

        queries = self.query(features)
        keys = self.key(features[senders], harmonics, self.key_weight(radial))
        values = self.value(features[senders], harmonics, self.value_weight(radial))
        attention = fade[:, None] * self.similarity(queries[receivers], keys).exp()
        total = attention.new_zeros(len(positions), 1).index_add(0, receivers, attention)
        total = torch.where(total == 0, 1.0, total)  # a point without neighbours
        out = values.new_zeros(len(positions), values.shape[1])
        return out.index_add(0, receivers, attention / total[receivers] * values)


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        hidden = o3.Irreps("6x0e+3x0o+3x1e+4x1o+2x2e")
        self.first = Attention(IRREPS_IN, "4x0e+2x1o", "3x0e+3x1o", hidden)
        self.norm = nn.BatchNorm(hidden)
        self.act = nn.NormActivation(hidden, torch.sigmoid, bias=True)
        self.second = Attention(hidden, "4x0e+2x1o", "3x0e+3x1o", IRREPS_OUT)

    def forward(self, features, positions):
        return self.second(self.act(self.norm(self.first(features, positions))), positions)


def make_model():
    return Transformer()


def train(model, steps, seed=0):
    torch.manual_seed(seed)
    features = o3.Irreps(IRREPS_IN).randn(NUM_POINTS, -1)
    positions = 2.0 * torch.rand(NUM_POINTS, 3)
    target = o3.Irreps(IRREPS_OUT).randn(NUM_POINTS, -1, normalization="norm")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = (model(features, positions) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    for step, loss in enumerate(train(make_model(), 40)):
        print(step, loss)
