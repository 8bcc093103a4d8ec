"""Set the learning rate and the momentum of an optimizer."""

from torch.optim import Optimizer

from robustcli.errors import RobustCliError


def set_rates(optimizer: Optimizer, lr: float, momentum: float | None) -> None:
    """Set the learning rate and, unless `momentum` is None, the momentum of all parameter groups.

    Momentum is `momentum` of SGD and beta1 of Adam and AdamW, as in torch's CyclicLR and OneCycleLR.

    Raises:
        RobustCliError: a momentum is given, and the optimizer has none.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif "momentum" in group:
            group["momentum"] = momentum
        else:
            raise RobustCliError(
                f"train.schedule.momentum: {type(optimizer).__name__} has no momentum; use sgd, adam or adamw, or "
                "remove momentum from the schedule"
            )


def copy_rates(leader: Optimizer, follower: Optimizer) -> None:
    """Give every parameter group of `follower` the learning rate and momentum of the same group of `leader`."""
    for led, group in zip(leader.param_groups, follower.param_groups, strict=True):
        group.update({key: led[key] for key in ("lr", "momentum", "betas") if key in led})
