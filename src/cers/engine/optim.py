"""The optimiser, with a learning rate of its own for the decoders' heads."""

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from cers.config import OptimConfig

HEAD = "logit"  # what every decoder calls its last convolution


def make_optimizer(optim: OptimConfig, method: nn.Module) -> Optimizer:
    """SGD or AdamW over all that trains, in two groups: the heads' last convolutions learn `head_lr_factor` faster."""
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    heads = [p for name, p in trained.items() if HEAD in name.split(".")]
    rest = [p for name, p in trained.items() if HEAD not in name.split(".")]
    groups = [{"params": rest, "lr_factor": 1.0}]
    if heads:
        groups.append({"params": heads, "lr_factor": optim.head_lr_factor})
    if optim.name == "sgd":
        return SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """`lr` for all groups, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
