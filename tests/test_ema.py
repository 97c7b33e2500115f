from typing import Literal

import pytest
import torch
from torch import nn

from cers.ema import Teacher, WeightAverage, ema_update_


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def train_a_little(net: nn.Module, steps: int = 1) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        net(torch.randn(4, 2, 5, 5) + 3).square().mean().backward()
        optimiser.step()


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def test_update_is_the_weighted_mean_and_carries_no_gradient():
    target, source = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0], requires_grad=True)
    ema_update_(target, source, 0.5)
    assert torch.equal(target, torch.tensor([2.0, 0.0]))
    ema_update_(target, source, 0.99)
    assert torch.allclose(target, torch.tensor([2.01, -0.02]), atol=1e-7)
    assert not target.requires_grad
    ema_update_(target, source, 0.0)
    assert torch.equal(target, source.detach())
    ema_update_(target, torch.zeros(2), 1.0)
    assert torch.equal(target, source.detach())


def test_first_update_copies_and_later_ones_follow_the_rule():
    net = network()
    average = WeightAverage(net, 0.6)
    expected = {}
    for t in range(5):
        train_a_little(net)
        average.update()
        decay = min(1 - 1 / (t + 1), 0.6)
        live = {k: v for k, v in state(net).items() if k in average.average}
        expected = {k: decay * expected.get(k, v) + (1 - decay) * v for k, v in live.items()}
        for name, tensor in average.average.items():
            assert torch.allclose(tensor, expected[name], atol=1e-6), (t, name)
        if t == 0:
            assert all(torch.equal(average.average[k], live[k]) for k in live)


def test_statistics_are_averaged_and_counters_are_not():
    names = set(WeightAverage(network(), 0.9).average)
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_applied_lends_the_average_and_takes_it_back_even_after_an_error():
    net = network()
    average = WeightAverage(net, 0.9)
    start = {k: v.clone() for k, v in average.average.items()}
    train_a_little(net, 3)
    live = state(net)
    with average.applied():
        within = state(net)
    assert all(torch.equal(within[k], start[k]) for k in start)
    assert not torch.equal(within["0.weight"], live["0.weight"])
    assert all(torch.equal(v, live[k]) for k, v in net.state_dict().items())
    with pytest.raises(RuntimeError, match="on purpose"), average.applied():
        raise RuntimeError("on purpose")
    assert all(torch.equal(v, live[k]) for k, v in net.state_dict().items())


def test_training_goes_on_with_the_live_weights_after_a_validation():
    """The optimiser keeps hold of the same tensors, and the average gets no gradient."""
    plain, lent = network(), network()
    average = WeightAverage(lent, 0.9)
    for net in (plain, lent):
        torch.manual_seed(1)
        train_a_little(net, 2)
        if net is lent:
            average.update()
            with average.applied():
                pass
        torch.manual_seed(2)
        train_a_little(net, 2)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in lent.state_dict().items())
    assert not any(tensor.requires_grad for tensor in average.average.values())


def teacher_of(net: nn.Module, decay: float = 0.5, mode: Literal["eval", "train"] = "eval") -> Teacher:
    return Teacher(net, decay, mode)


def test_a_teacher_copies_at_first_and_averages_exactly_from_then_on():
    net = network()
    teacher = teacher_of(net)
    train_a_little(net)
    teacher.update(net)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state(teacher.network).items())
    before = state(net)
    train_a_little(net)
    teacher.update(net)
    for name, value in state(teacher.network).items():
        live = net.state_dict()[name]
        expected = (before[name] + live) / 2 if value.is_floating_point() else live  # counters are copied
        assert torch.allclose(value, expected, atol=1e-7), name
    assert teacher.updates == 2


def test_a_teacher_takes_no_gradient_and_stays_in_eval_mode():
    net = network().train()
    teacher = teacher_of(net).train()
    before = state(teacher)
    images = torch.randn(4, 2, 5, 5, requires_grad=True)
    assert not teacher(images).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in state(teacher).items())
    assert all(p.requires_grad for p in net.parameters())


def test_a_teacher_in_train_mode_keeps_statistics_of_its_own():
    net = network()
    teacher = teacher_of(net, mode="train").train()
    teacher(torch.randn(4, 2, 5, 5) + 3)
    seen = teacher.network[1].running_mean.clone()
    assert seen.abs().sum() > 0
    teacher.update(net)
    assert torch.equal(teacher.network[1].running_mean, seen)
    assert not teacher.eval().network[1].training


def test_a_teacher_of_two_follows_their_mean_and_a_restarted_one_its_student():
    torch.manual_seed(1)
    first, second = network(), nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    teacher = teacher_of(first, 0.9)
    teacher.update(first, second, 0.25)
    expected = 0.25 * first[0].weight + 0.75 * second[0].weight
    assert torch.allclose(teacher.network[0].weight, expected, atol=1e-7)
    teacher.restart(second)
    assert torch.equal(teacher.network[0].weight, second[0].weight)
    teacher.update(first)
    assert torch.allclose(teacher.network[0].weight, 0.9 * second[0].weight + 0.1 * first[0].weight, atol=1e-7)
