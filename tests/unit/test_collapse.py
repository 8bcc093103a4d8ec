"""Planted catastrophic overfitting: FGSM training collapses and is stopped by the monitor; PGD training is not.

Every image is a coarse pattern of its class. In most the pattern is stronger than eps, and training first learns
these, robustly. In the others it is weaker than eps, so that nothing robust is left to learn from them, but an
attack of one step can be answered by a gradient that leads it astray (compare Ortiz-Jimenez et al., 2023).
"""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from small_training import CPU, RecordedLoop, loop_of
from torch import Tensor, nn

from robustcli.contracts.networks import drawn_from
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.splits import prepare
from robustcli.defenses import Defense
from robustcli.defenses.fgsm import fgsm
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import CollapseError
from robustcli.optimization.averaging.none import LastWeights
from robustcli.specs.settings import TrainSettings
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.training.loop import Means, Training, fit
from robustcli.training.model import TrainingModel

pytestmark = pytest.mark.slow

THREAT = ThreatModel("linf", Fraction(1, 5))
CLASSES, SIDE, SEED = 10, 16, 2
SETTINGS = TrainSettings(epochs=8, batch_size=30, lr=3e-3, on_collapse="stop", check_examples=200)

MONITORS = {"alignment", "zero_gradients", "fgsm_pgd_cosine", "pgd_distortion", "fw2_distortion"}


def patterns(count: int, seed: int, strong: float = 0.3, weak: float = 0.1, share: float = 0.7) -> TensorSplit:
    of_classes = torch.randn((CLASSES, 1, 4, 4), generator=torch.Generator().manual_seed(1234)).sign()
    of_classes = of_classes.repeat_interleave(SIDE // 4, 2).repeat_interleave(SIDE // 4, 3)
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    strength = torch.where(torch.rand((count, 1, 1, 1), generator=generator) < share, strong, weak)
    blur = 0.05 * torch.randn((count, 1, SIDE, SIDE), generator=generator)
    return TensorSplit((0.5 + strength * of_classes[y] + blur).clamp(0, 1), y)


def network() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    with drawn_from(SEED):
        return nn.Sequential(
            *block(1, 8, 1), *block(8, 16, 2), *block(16, 16, 2), nn.Flatten(), nn.Linear(16 * 16, CLASSES)
        )


def planted(defense: Defense) -> tuple[Training, RecordedLoop]:
    """A training on the planted images, and its loop with the check of a real run."""
    source = Source(
        patterns(500, SEED), patterns(CLASSES, 9), [str(y) for y in range(CLASSES)], mean=(0.0,), std=(1.0,)
    )
    data = prepare(source, val_size=200, train_size=None, device=CPU, workers=0)
    model, noise = network(), StreamNoise.on(CPU)
    optimizer = torch.optim.Adam(model.parameters(), SETTINGS.lr)
    step = defense.start(TrainingModel(model, SETTINGS, CPU), optimizer, noise)
    training = Training(model, optimizer, step, LastWeights().start(model), Means(CPU))
    loop = loop_of(training, SETTINGS, noise=noise, seed=SEED, replays=defense.replays)
    check = Check(SETTINGS, defense, data, THREAT)
    return training, replace(loop, data=data, threat=THREAT, check=check)


def robust(loop: RecordedLoop) -> Tensor:
    return torch.tensor([record["robust"] for record in loop.records])


def test_fgsm_training_is_stopped_when_it_overfits_catastrophically() -> None:
    training, loop = planted(fgsm())
    with pytest.raises(CollapseError, match="under many steps"):
        fit(training, loop)
    *before, last = loop.records
    best = max(record["robust"] for record in before)
    assert best > 0.5, "it was robust before"
    assert last["robust"] < best - 0.2
    assert last["fgsm"] > last["robust"] + 0.2, "and looks robust to one step still"
    assert loop.events[-1]["event"] == "collapsed"
    # The monitored quantities rose with robustness and now fall, the signs of two steps first.
    most = {name: max(record[name] for record in before) for name in MONITORS - {"zero_gradients"}}
    assert all(last[name] < value for name, value in most.items())
    assert last["fw2_distortion"] < most["fw2_distortion"] - 0.02
    assert len(loop.saved) == len(before), "the weights of the last good epoch are those that are kept"


def test_pgd_training_on_the_same_images_is_not_stopped() -> None:
    training, loop = planted(pgd_at(steps=3, step_size=0.1, attack_bn="train"))
    fit(training, loop)
    assert not loop.events
    assert training.collapsed_at is None
    assert len(loop.records) == SETTINGS.epochs
    assert robust(loop)[-1] > 0.5
    assert not MONITORS & loop.records[-1].keys(), "what is not crafted in one step is not watched for it"
