"""Passes through the network: how many a step makes, how many it must make, and what those cost alone."""

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
from robustcli.models.build import build_network
from robustcli.optimization.progress import Progress
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import instantiate
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.model import TrainingModel

# Images of an update whose passes are counted.
_COUNTED = 4


@dataclass(frozen=True)
class Passes:
    """Passes through the network in one update, per image of the batch.

    Passes of networks beside it, such as a helper, count like its own.

    Args:
        forwards: every one, with or without a gradient to follow.
        input_gradients: backwards to the input that leave the weights alone.
        weight_gradients: backwards to the weights. One backward through two forwards counts as two, and so does one
            through a gradient: it goes through that gradient's backward, for as much as a backward to the weights
            costs, and through the forward below.
    """

    forwards: float = 0
    input_gradients: float = 0
    weight_gradients: float = 0


@dataclass
class PassCounter:
    """Images that went through the networks so far, by kind of pass."""

    forwards: int = 0
    input_gradients: int = 0
    weight_gradients: int = 0

    def per_image(self, batch_size: int) -> Passes:
        return Passes(self.forwards / batch_size, self.input_gradients / batch_size, self.weight_gradients / batch_size)


@contextmanager
def passes_by_kind(network: nn.Module) -> Iterator[PassCounter]:
    """Count what goes through a network and through any other; the counter is filled when the context is left.

    A backward is told by which gradients a convolution computed: the convolution of its network that most images
    went through, the first of these. A part that is asked less often, such as a gate beside the network, is none of
    its passes. What is called from outside and is no part of `network` is a network of its own, known to the caller
    or not; one without a convolution, such as a head on features, counts nothing.

    Raises:
        RobustCliError: the network has no convolution to look at.
    """
    own = set(network.modules())
    if not any(isinstance(module, nn.Conv2d) for module in own):
        raise RobustCliError("passes are counted at a convolution; this network has none")
    counters: dict[nn.Module, dict[nn.Module, PassCounter]] = {}
    entered: list[nn.Module] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        entered.append(module)

    def leave(module: nn.Module, _inputs: Any, features: Any) -> None:
        outermost = entered[0]
        entered.pop()
        # None after an error inside.
        if isinstance(module, nn.Conv2d) and features is not None:
            of_network = counters.setdefault(network if module in own else outermost, {})
            _went_forward(of_network.setdefault(module, PassCounter()), features)

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


def _went_forward(counter: PassCounter, features: Tensor) -> None:
    images = len(features)
    counter.forwards += images

    def came_through_a_gradient(*_: Any) -> None:
        counter.weight_gradients += images

    def came_back(gradients: tuple[Tensor | None, ...], _: Any) -> None:
        # Of the input, the weight and the bias; None where autograd left it out.
        if gradients[1] is not None:
            counter.weight_gradients += images
        else:
            counter.input_gradients += images
            to_input = gradients[0]
            if to_input is not None and to_input.grad_fn is not None:
                to_input.grad_fn.register_hook(came_through_a_gradient)

    if features.grad_fn is not None:
        features.grad_fn.register_hook(came_back)


def passes_of(spec: ExperimentSpec, shape: ImageShape) -> Passes:
    """The passes of one update with the settings of a spec: the second one of a new network, in the last epoch.

    By then what begins after a warm-up has begun. Of methods that adapt it is the beginning, and of attacks that are
    done with some images early it is the most they take. The first update has forwards beside it, by which parts
    learn the shapes of what they are given.

    Raises:
        RobustCliError: the network has no convolution to look at.
    """
    device = torch.device("cpu")
    noise = StreamNoise.on(device).reseed(0, "passes")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((_COUNTED, shape.channels, shape.height, shape.width), generator=generator)
    y = torch.randint(shape.classes, (_COUNTED,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(spec.architecture, shape, (0.5,) * shape.channels, (0.25,) * shape.channels).train()
        defense: Defense = instantiate(spec.defense)
        # Compiling changes no count.
        model = TrainingModel(network, replace(spec.train, compile=False), device)
        step = defense.start(model, SGD(network.parameters(), lr=1e-3), noise)
        epochs = max(1, spec.train.epochs)
        threat = ThreatModel(spec.threat.norm, spec.threat.eps)
        step(x, Labels.of(y), threat, Progress(2 * epochs - 2, 2, epochs))
        with no_early_exit(), passes_by_kind(network) as counter:
            step(x, Labels.of(y), threat, Progress(2 * epochs - 1, 2, epochs))
    return counter.per_image(_COUNTED)


def least_passes(defense: str, weights: str) -> Passes | None:
    """The passes that the mathematics of a method demands in its default form, or None where nobody has counted.

    Args:
        defense, weights: registered names.
    """
    member, around = catalog("defenses").get(defense), catalog("weights").get(weights)
    if member is None or member.passes is None or around is None or around.passes is None:
        return None
    if member.fewest is not None:
        return None  # it depends on the images and on the network
    forwards, images, batches = member.passes
    # What the perturbation adds for every batch that the loss is differentiated at.
    more = around.passes
    return Passes(forwards + batches * more[0], images + batches * more[1], batches + batches * more[2])


class PassesAlone:
    """The passes of an update with nothing around them: no noise, no projection, no change of mode.

    Forwards without a gradient and gradients of the input run in eval mode at weights that want no gradient;
    gradients of the weights in train mode. The update of the weights is part of it. Where there are more backwards
    than forwards, as with the derivative of a gradient, a forward's backward is made so many times more.

    Args:
        model: called for every pass; copied.
        passes: per image; what is left of a whole number is made with a part of the batch.
        x, y: the batch.
    """

    def __init__(self, model: nn.Module, passes: Passes, x: Tensor, y: Tensor, lr: float) -> None:
        self.trained = deepcopy(model).train()
        self.held = deepcopy(model).eval().requires_grad_(False)
        self.optimizer = SGD(self.trained.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        looks = passes.forwards - passes.input_gradients - passes.weight_gradients
        self.again = max(0, round(-looks))
        self.looks = _batches(max(0, looks), x, y)
        self.input_gradients = _batches(passes.input_gradients, x, y)
        self.weight_gradients = _batches(passes.weight_gradients - self.again, x, y)

    def __call__(self) -> None:
        with torch.no_grad():
            for x, _ in self.looks:
                self.held(x)
        for x, y in self.input_gradients:
            x = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.held(x), y, reduction="sum"), x)
        self.optimizer.zero_grad()
        for number, (x, y) in enumerate(self.weight_gradients):
            loss = F.cross_entropy(self.trained(x), y)
            for _ in range(0 if number else self.again):
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def _batches(passes: float, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    whole, rest = divmod(round(passes * len(x)), len(x))
    return [(x, y)] * whole + ([(x[:rest], y[:rest])] if rest else [])
