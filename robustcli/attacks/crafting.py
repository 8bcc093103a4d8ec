"""The state of a model while it is attacked."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.architectures.running_statistics import RunningStatistics
from robustcli.errors import RobustCliError
from robustcli.registry.types import AttackBn
from robustcli.runtime.held_casts import casts_held


@contextmanager
def crafting(model: nn.Module, attack_bn: AttackBn) -> Iterator[None]:
    """Disable gradients of the weights and set the mode; restore both afterwards, also after an error."""
    with crafting_mode(model, attack_bn), _weights_held(model), casts_held(model):
        yield


@contextmanager
def crafting_mode(model: nn.Module, attack_bn: AttackBn) -> Iterator[None]:
    """Set the mode in which a model is attacked, but keep gradients of the weights.

    Args:
        attack_bn: "eval": running statistics, no dropout. "train": the whole model in train mode; batch norms use
            batch statistics and every forward updates running ones. "batch_no_update": batch statistics without
            updates, everything else in eval mode. Other layers with `RunningStatistics` are treated like batch norms.
    """
    with modes_restored(model):
        if attack_bn == "train":
            model.train()
            yield
        elif attack_bn == "eval":
            model.eval()
            yield
        elif attack_bn == "batch_no_update":
            model.eval()
            for norm in _with_statistics(model):
                norm.train()
            with statistics_held(model):
                yield
        else:
            raise RobustCliError(f"attack_bn: '{attack_bn}' is not one of eval, train, batch_no_update")


@contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged; batch norms in train mode still use batch statistics."""
    norms = [norm for norm in _with_statistics(model) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every part, because some may be in eval mode while the others train."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _weights_held(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _with_statistics(model: nn.Module) -> list[_BatchNorm | RunningStatistics]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm | RunningStatistics)]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Set the network to eval mode inside the context; restore the mode of every part."""
    with modes_restored(network):
        yield network.eval()
