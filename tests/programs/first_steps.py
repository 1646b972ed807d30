"""What e3nn's README begins with: features of random numbers, a linear layer, their product with themselves,
and torch.compile over it. A second linear layer learns the norms of the features from the product.
"""

import torch
from e3nn import nn, o3

NUM_ROWS = 40
IRREPS_IN = "1x0e+1x1o"


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = o3.Linear(irreps_in=IRREPS_IN, irreps_out=o3.Irreps("2x0e + 2x1o"))
        mixed = self.linear.irreps_out
        self.product = o3.FullTensorProduct(irreps_in1=mixed, irreps_in2=mixed)
        self.readout = o3.Linear(self.product.irreps_out, "4x0e")
        self.activation = nn.Activation("4x0e", [torch.tanh])
        self.last = o3.Linear("4x0e", "1x0e")

    def forward(self, features):
        mixed = self.linear(features)
        return self.last(self.activation(self.readout(self.product(mixed, mixed))))


def make_model():
    return Model()


def train(model, steps, seed=0):
    torch.manual_seed(seed)
    features = o3.Irreps(IRREPS_IN).randn(NUM_ROWS, -1)
    target = features.norm(dim=1, keepdim=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), model(features))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = (compiled(features) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    for step, loss in enumerate(train(make_model(), 50)):
        print(step, loss)
