import torch
from torch import nn

from cers.config import OptimConfig
from cers.engine.optim import make_optimizer, set_learning_rate
from cers.nets.decoders import Head


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 1)
        self.head = Head(4, 2)
        self.frozen = nn.Conv2d(3, 4, 1).requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x), (4, 4))


def moved(optim: OptimConfig, lr: float) -> dict[str, float]:
    torch.manual_seed(0)
    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = make_optimizer(optim, net)
    set_learning_rate(optimizer, lr)
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    return {n: float((p.detach() - before[n]).abs().max()) for n, p in net.named_parameters()}


def test_heads_move_by_their_own_learning_rate():
    steps = moved(OptimConfig(name="adamw", weight_decay=0, head_lr_factor=10), lr=1e-3)
    assert abs(steps["body.weight"] - 1e-3) < 1e-5
    assert abs(steps["head.logit.weight"] - 1e-2) < 1e-4
    assert abs(steps["head.logit.bias"] - 1e-2) < 1e-4
    assert abs(steps["head.conv.weight"] - 1e-3) < 1e-5
    assert steps["frozen.weight"] == 0


def test_sgd_scales_the_heads_too():
    plain = moved(OptimConfig(name="sgd", weight_decay=0), lr=1e-3)
    faster = moved(OptimConfig(name="sgd", weight_decay=0, head_lr_factor=3), lr=1e-3)
    assert torch.isclose(torch.tensor(faster["head.logit.weight"]), torch.tensor(3 * plain["head.logit.weight"]))
    assert faster["body.weight"] == plain["body.weight"]


def test_a_network_without_heads_has_one_group():
    assert len(make_optimizer(OptimConfig(head_lr_factor=10), nn.Linear(2, 2)).param_groups) == 1
