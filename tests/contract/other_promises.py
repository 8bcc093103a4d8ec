"""What every schedule, architecture, evaluator, optimiser and data set promises."""

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from attack_promises import RADII
from model_state import found_again
from small_networks import conv_net, drawn_from, images, linear_net
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.architectures import ImageShape
from robustcli.architectures.channel_gates import with_probes
from robustcli.data.datasets import Source, Split
from robustcli.evaluation.evidence import Evidence, gather
from robustcli.evaluators import Case, Evaluator
from robustcli.evaluators.under import Under
from robustcli.optimization.clock import Clock
from robustcli.optimization.schedules import Schedule
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

RUNS = ((1, 1), (5, 1), (2, 3), (7, 10), (390, 4))


def stays_between_0_and_1(schedule: Schedule) -> None:
    """A finite factor in [0, 1] for every update of short and long runs; full rate is reached or nearly so."""
    for steps_per_epoch, epochs in RUNS:
        for step in range(steps_per_epoch * epochs):
            factor = schedule(Clock(step, steps_per_epoch, epochs))
            assert isinstance(factor, float)
            assert math.isfinite(factor)
            assert -1e-12 <= factor <= 1 + 1e-12, f"{factor} at update {step} of {steps_per_epoch} x {epochs}"


def depends_on_the_clock_alone(schedule: Schedule) -> None:
    clocks = [Clock(step, 7, 10) for step in range(70)]
    forwards = [schedule(clock) for clock in clocks]
    assert [schedule(clock) for clock in reversed(clocks)][::-1] == forwards


def observed_schedule(schedule: Schedule) -> Tensor:
    return torch.tensor([schedule(Clock(step, 7, 10)) for step in range(70)])


Body = Callable[[ImageShape], nn.Module]


def _body(build: Body, shape: ImageShape) -> nn.Module:
    with drawn_from(0):
        return build(shape)


def _pixels(shape: ImageShape, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand((count, shape.channels, shape.height, shape.width), generator=generator)


def gives_logits(build: Body, shape: ImageShape) -> None:
    """(n, k), finite, in train and in eval mode, and not probabilities; the images are not written to."""
    network, x = _body(build, shape), _pixels(shape)
    given = x.clone()
    for is_training in (True, False):
        with drawn_from(1), torch.no_grad():
            logits = network.train(is_training)(x)
        assert logits.shape == (len(x), shape.classes)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert not torch.allclose(logits.sum(1), torch.ones(len(x)), atol=1e-3), "probabilities?"
    assert torch.equal(x, given)


def sees_one_image_at_a_time(build: Body, shape: ImageShape) -> None:
    """In eval mode logits do not depend on the images beside."""
    network, x = _body(build, shape).eval(), _pixels(shape)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(image[None]) for image in x])
    assert torch.allclose(alone, together, rtol=1e-4, atol=1e-4 * float(together.abs().max()))


def every_parameter_learns(build: Body, shape: ImageShape) -> None:
    network, x = _body(build, shape).train(), _pixels(shape)
    with drawn_from(1):
        # A little beside where they start: gradients of parts that start as copies may cancel, and of what a zero
        # multiplies there are none.
        for parameter in network.parameters():
            size = float(parameter.detach().abs().mean()) or 0.1
            parameter.data += 0.1 * torch.randn_like(parameter) * size
        logits, probes = with_probes(network, x)
        # Probes inside a network learn from losses of their own.
        sum(said.square().sum() for said in (logits, *probes)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, f"{name} has the gradient zero"


def is_drawn_from_the_seed(build: Body, shape: ImageShape) -> None:
    """Equal seeds give equal weights; a copy, loaded from a state, is the same function."""
    one, other = _body(build, shape), _body(build, shape)
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    with drawn_from(5):
        copy = build(shape)
    copy.load_state_dict(deepcopy(one.state_dict()))
    with torch.no_grad():
        assert torch.equal(copy.eval()(_pixels(shape)), one.eval()(_pixels(shape)))


def observed_architecture(build: Body, shape: ImageShape) -> Tensor:
    """Logits, their gradient, and the size of every weight: parts that start as copies do not show in the logits.

    Last, logits in eval mode after the weights have moved: statistics may be of earlier ones.
    """
    network, x = _body(build, shape).train(), _pixels(shape).requires_grad_()
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.square().sum(), x)
    sizes = torch.tensor([parameter.numel() for parameter in network.parameters()])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
        later = network.eval()(x)
    return torch.cat([logits.detach().flatten(), grad.flatten(), sizes, later.flatten()])


def _judged(classes: int = 10) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, images, labels of which every third is wrong, and who is right."""
    model, x = conv_net(classes=classes).eval(), images(7)
    with torch.no_grad():
        y = model(x).argmax(1)
    is_right = torch.arange(len(x)) % 3 != 0
    return model, x, torch.where(is_right, y, (y + 1) % classes), is_right


def gathered(evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Evidence:
    """What an evaluator finds; what it warns of is meant for the reader of a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gather(evaluator, model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))


def survivors(evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Who is left."""
    return gathered(evaluator, model, x, y, threat).survives


def gives_a_mask(evaluator: Evaluator, norm: Norm) -> None:
    """bool (n,) on the CPU; nobody survives who was wrong when clean; x, y and the model are as found."""
    model, x, y, is_right = _judged()
    given_x, given_y = x.clone(), y.clone()
    with found_again(model):
        alive = survivors(evaluator, model, x, y, ThreatModel(norm, RADII[norm]))
    assert isinstance(alive, Tensor)
    assert alive.dtype == torch.bool
    assert alive.shape == (len(x),)
    assert alive.device.type == "cpu"
    assert not (alive & ~is_right).any(), "survives, and was wrong when clean"
    assert torch.equal(x, given_x)
    assert torch.equal(y, given_y)


def lets_the_right_live_at_radius_0(evaluator: Evaluator) -> None:
    model, x, y, is_right = _judged()
    if isinstance(evaluator, Under):
        evaluator = replace(evaluator, eps=Fraction(0))
    assert torch.equal(survivors(evaluator, model, x, y, ThreatModel("linf", Fraction(0))), is_right)


def takes_the_smallest_batches(evaluator: Evaluator) -> None:
    """One image, and images of which none is right."""
    model, x, y, _ = _judged()
    threat = ThreatModel("linf", RADII["linf"])
    assert survivors(evaluator, model, x[1:2], y[1:2], threat).shape == (1,)
    wrong = (y + 5) % 10
    with torch.no_grad():
        assert (model(x).argmax(1) != wrong).all()
    assert not survivors(evaluator, model, x, wrong, threat).any()


def evaluator_repeats_itself(evaluator: Evaluator) -> None:
    model, x, y, _ = _judged()
    threat = ThreatModel("linf", Fraction(1, 100))
    state = torch.get_rng_state()
    first = survivors(evaluator, model, x, y, threat)
    assert torch.equal(torch.get_rng_state(), state), "moved the global generator"
    assert torch.equal(survivors(evaluator, model, x, y, threat), first)


def keeps_to_its_batch_size(evaluator: Evaluator) -> None:
    """No forward holds more images than the batch size."""
    model, x, y, _ = _judged()
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    survivors(evaluator, model, x, y, ThreatModel("linf", Fraction(1, 1000)))
    hook.remove()
    assert max(sizes) <= evaluator.batch_size


def names_its_stages(evaluator: Evaluator) -> None:
    """No two stages have one name, and asked twice an evaluator names the same."""
    case = Case(ThreatModel("linf", Fraction(1, 100)), (3, 8, 8), 10)
    names = [stage.name for stage in evaluator.stages(case)]
    assert len(set(names)) == len(names)
    assert [stage.name for stage in evaluator.stages(case)] == names


def observed_evaluator(evaluator: Evaluator) -> Tensor:
    """Survivors, their margins beyond rounding, and how many images each forward held."""
    model, x = linear_net(64).eval(), images(3)
    with torch.no_grad():
        y = model(x).argmax(1)
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    found = gathered(evaluator, model, x, y, ThreatModel("linf", Fraction(1, 1000)))
    hook.remove()
    return torch.tensor([*found.survives.tolist(), *found.margins.mul(1e4).round().tolist(), *sizes])


Make = Callable[[list[dict[str, Any]], float], Optimizer]


def lowers_a_loss(make: Make) -> None:
    """The learning rate and the weight decay of each group are the given ones; a bowl is descended."""
    weight, held = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = make([{"params": [weight], "weight_decay": 0.0}, {"params": [held], "weight_decay": 0.5}], 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]
    for _ in range(50):
        optimizer.zero_grad()
        (weight.square().sum() + 0 * held.sum()).backward()
        optimizer.step()
    assert weight.abs().max() < 0.9
    assert held.abs().max() < 0.9, "no weight decay"


def observed_optimizer(make: Make) -> Tensor:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = make([{"params": [weight], "weight_decay": 0.0}], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        weight.pow(4).sum().backward()
        optimizer.step()
    return weight.detach()


def is_a_source(load: Callable[[], Source]) -> None:
    """Both parts hold labelled images of one shape and range; loading again gives the same."""
    source, again = load(), load()
    shapes = {_check_split(part, len(source.classes)) for part in (source.train, source.test)}
    assert len(shapes) == 1
    channels = shapes.pop()[0]
    assert len(source.mean) == len(source.std) == channels
    assert all(std > 0 for std in source.std)
    assert torch.equal(source.train.labels, again.train.labels)
    first = torch.arange(5)
    assert torch.equal(source.train.read(first), again.train.read(first))


def _check_split(split: Split, classes: int) -> torch.Size:
    assert split.labels.dtype == torch.int64
    assert split.labels.device.type == "cpu"
    assert len(split.labels) > 0
    assert int(split.labels.min()) >= 0
    assert int(split.labels.max()) < classes
    pixels = split.read(torch.tensor([3, 0, 3]))
    assert pixels.dtype in (torch.uint8, torch.float32)
    assert torch.equal(pixels[0], pixels[2])
    if pixels.dtype == torch.float32:
        assert float(pixels.min()) >= 0
        assert float(pixels.max()) <= 1
    return pixels.shape[1:]
