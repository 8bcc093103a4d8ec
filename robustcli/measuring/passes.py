"""Passes through the network: count those of a step, its minimum, and run them by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import SGD

from robustcli.architectures import ImageShape
from robustcli.attacks.active_set import no_early_exit
from robustcli.data.targets import Labels
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.models.build import network_for_random_images
from robustcli.optimization.progress import Progress
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import instantiate
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.passes import Passes
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.model import TrainingModel

# Layers at which passes are counted.
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
# Images of an update whose passes are counted.
_COUNTED = 4


@dataclass
class PassCounter:
    """Number of images that passed through the networks, by kind of pass."""

    forwards: int = 0
    input_gradients: int = 0
    weight_gradients: int = 0

    def per_image(self, batch_size: int) -> Passes:
        return Passes(self.forwards / batch_size, self.input_gradients / batch_size, self.weight_gradients / batch_size)


@contextmanager
def passes_by_kind(network: nn.Module) -> Iterator[PassCounter]:
    """Count the passes through a network and all others; the counter is complete at the end of the context.

    The kind of a backward pass follows from the gradients that a convolution computes. In each network the convolution
    with the most images counts, the first of several. So parts that are called less often, such as gates, do not count.
    A module that is called from outside and is not a part of `network` counts as another network; modules without a
    convolution, such as a classifier of features, do not count.

    Raises:
        RobustCliError: the network has no convolution.
    """
    own = set(network.modules())
    if not any(isinstance(module, CONVOLUTIONS) for module in own):
        raise RobustCliError("passes are counted at a convolution, but this network has no convolution")
    counters: dict[nn.Module, dict[nn.Module, PassCounter]] = {}
    entered: list[nn.Module] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        entered.append(module)

    def leave(module: nn.Module, _inputs: Any, features: Any) -> None:
        outermost = entered[0]
        entered.pop()
        # None after an error in the module.
        if isinstance(module, CONVOLUTIONS) and features is not None:
            of_network = counters.setdefault(network if module in own else outermost, {})
            _count_forward(of_network.setdefault(module, PassCounter()), features)

    hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
    total = PassCounter()
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()
        for of_network in counters.values():
            busiest = max(of_network.values(), key=lambda counter: counter.forwards)
            total.forwards += busiest.forwards
            total.input_gradients += busiest.input_gradients
            total.weight_gradients += busiest.weight_gradients


def _count_forward(counter: PassCounter, features: Tensor) -> None:
    images = len(features)
    counter.forwards += images

    def count_second_order(*_: Any) -> None:
        counter.weight_gradients += images

    def count(gradients: tuple[Tensor | None, ...], _: Any) -> None:
        # Gradients of input, weight and bias; None for those that autograd did not compute.
        if gradients[1] is not None:
            counter.weight_gradients += images
        else:
            counter.input_gradients += images
            to_input = gradients[0]
            if to_input is not None and to_input.grad_fn is not None:
                to_input.grad_fn.register_hook(count_second_order)

    if features.grad_fn is not None:
        features.grad_fn.register_hook(count)


def passes_of(spec: ExperimentSpec, shape: ImageShape) -> Passes:
    """Return the passes of one update of a spec: the second update of a new network, in the last epoch.

    So parts that start after a warm-up count. For defenses that adapt, this is the cost at the start; for attacks with
    early exit, the maximum. The first update may have additional forward passes, which determine shapes.

    Raises:
        RobustCliError: the network has no convolution.
    """
    device = torch.device("cpu")
    noise = StreamNoise.on(device).reseed(0, "passes")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((_COUNTED, *shape.size), generator=generator)
    y = torch.randint(shape.classes, (_COUNTED,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_for_random_images(spec.architecture, shape).train()
        defense: Defense = instantiate(spec.defense)
        # Compilation does not change the passes.
        model = TrainingModel(network, replace(spec.train, compile=False), device)
        step = defense.start(model, SGD(network.parameters(), lr=1e-3), noise)
        epochs = max(1, spec.train.epochs)
        threat = ThreatModel(spec.threat.norm, spec.threat.eps)
        step(x, Labels.of(y), threat, Progress(2 * epochs - 2, 2, epochs))
        with no_early_exit(), passes_by_kind(network) as counter:
            step(x, Labels.of(y), threat, Progress(2 * epochs - 1, 2, epochs))
    return counter.per_image(_COUNTED)


def least_passes(defense: str, weights: str) -> Passes | None:
    """Return the minimum of passes for a method with its defaults, or None if unknown.

    Args:
        defense, weights: registered names.
    """
    member, around = catalog("defenses").get(defense), catalog("weights").get(weights)
    if member is None or member.passes is None or around is None or around.passes is None:
        return None
    if member.fewest is not None:
        return None  # depends on the images and on the network
    forwards, images, batches = member.passes
    # Added by the weight perturbation each time the loss is differentiated.
    more = around.passes
    return Passes(forwards + batches * more[0], images + batches * more[1], batches + batches * more[2])


def forward_alone(network: nn.Module, x: Tensor) -> None:
    """Run one forward pass without a gradient."""
    with torch.no_grad():
        network(x)


def input_gradient_alone(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Run one forward pass and one backward pass to the images."""
    x = x.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(network(x), y, reduction="sum"), x)


class PassesAlone:
    """Run the passes of an update by themselves: without noise, projection and changes of mode.

    Forward passes without a gradient and gradients of the input run in eval mode, with weights that need no gradient;
    gradients of the weights run in train mode. The update of the weights is included. If there are more backward than
    forward passes, as for the derivative of a gradient, one backward pass is repeated.

    Args:
        model: model to copy and call.
        passes: passes per image; a fraction is run with a part of the batch.
        x, y: batch.
    """

    def __init__(self, model: nn.Module, passes: Passes, x: Tensor, y: Tensor, lr: float) -> None:
        self.trained = deepcopy(model).train()
        self.held = deepcopy(model).eval().requires_grad_(False)
        self.optimizer = SGD(self.trained.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        clean = passes.forwards - passes.input_gradients - passes.weight_gradients
        self.repeats = max(0, round(-clean))
        self.forwards = _batches(max(0, clean), x, y)
        self.input_gradients = _batches(passes.input_gradients, x, y)
        self.weight_gradients = _batches(passes.weight_gradients - self.repeats, x, y)

    def __call__(self) -> None:
        for x, _ in self.forwards:
            forward_alone(self.held, x)
        for x, y in self.input_gradients:
            input_gradient_alone(self.held, x, y)
        self.optimizer.zero_grad()
        for number, (x, y) in enumerate(self.weight_gradients):
            loss = F.cross_entropy(self.trained(x), y)
            for _ in range(0 if number else self.repeats):
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def _batches(passes: float, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    whole, rest = divmod(round(passes * len(x)), len(x))
    return [(x, y)] * whole + ([(x[:rest], y[:rest])] if rest else [])
