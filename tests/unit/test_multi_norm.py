"""Training against several threats: limits, formulas, and what an update costs."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from judging import noise
from small_steps import LINF, counted, progress, same, train
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.multi_threat import Alternate, Msd, WorstOf
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.defenses import Batch
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.multi_norm import VersionsCrossEntropy, multi_norm
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.types import OtherThreat
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

L2 = OtherThreat(norm="l2", eps=Fraction(1, 2))
L1 = OtherThreat(norm="l1", eps=Fraction(4), step_size=0.5)
WAYS = ["max", "average", "random", "msd"]


def against(combine: Any, *others: OtherThreat, **settings: Any) -> MinMax:
    return multi_norm(others=list(others), combine=combine, **settings)


@pytest.mark.parametrize("combine", WAYS)
def test_one_threat_is_pgd_at(combine: str) -> None:
    # msd projects the start, which pgd leaves to its first step; from the clean image there is no difference.
    start: Any = "clean" if combine == "msd" else "random"
    found = train(against(combine, steps=3, start=start), conv_net())
    assert same(found, train(pgd_at(steps=3, start=start), conv_net()))


@pytest.mark.parametrize("combine", ["average", "max"])
def test_a_threat_twice_is_that_threat(combine: str) -> None:
    once = train(against(combine, steps=2, start="clean"), conv_net(dtype=torch.float64))
    again = OtherThreat(norm="linf", eps=LINF.eps)
    twice = train(against(combine, again, steps=2, start="clean"), conv_net(dtype=torch.float64))
    floats = [(a, b) for a, b in zip(once, twice, strict=True) if a.is_floating_point()]
    # Of a batch that is there twice batch norm's unbiased variance differs: compare what is trained, roughly.
    assert all(torch.allclose(a, b, rtol=0.02, atol=1e-9) for a, b in floats)


@pytest.mark.parametrize("shares", [False, True])
def test_average_is_the_mean_over_threats(shares: bool) -> None:
    model, x, y = conv_net(dtype=torch.float64).eval(), images(4, dtype=torch.float64), labels(4)
    versions = [images(4, seed=seed, dtype=torch.float64) for seed in (5, 6, 7)]
    target = nn.functional.one_hot(y, 10).double() if shares else y
    with torch.no_grad():
        found = VersionsCrossEntropy()(model, Batch(x, target, torch.cat(versions)))
        logits = [model(version).numpy() for version in versions]
    each = [np.log(np.exp(z).sum(1)) - z[np.arange(4), y.numpy()] for z in logits]
    assert found.item() == pytest.approx(np.mean(each))


@dataclass(frozen=True)
class Constant(Attack):
    """Returns given images."""

    points: Tensor

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.points


def test_worst_takes_of_every_image_the_higher_loss() -> None:
    model, x, y = conv_net().eval(), images(32), labels(32)
    versions = [images(32, seed=seed) for seed in (5, 6, 7)]
    worst = WorstOf(attacks=tuple(map(Constant, versions)))(model, x, y, LINF, noise(32))
    with torch.no_grad():
        losses = torch.stack([nn.functional.cross_entropy(model(z), y, reduction="none") for z in versions])
    best = losses.argmax(0)
    assert len(best.unique()) == 3, "every version is the worst of some image"
    for number, choice in enumerate(best.tolist()):
        assert torch.equal(worst[number], versions[choice][number])


def test_every_version_lies_in_its_own_threat() -> None:
    model, x, y = conv_net().eval(), images(8), labels(8)
    attack: Any = against("average", L2, L1, steps=5).attack
    versions = attack(model, x, y, LINF, noise(8)).split(8)
    threats = [LINF, ThreatModel("l2", L2.eps), ThreatModel("l1", L1.eps)]
    for threat, points in zip(threats, versions, strict=True):
        assert threat.contains(points, x).all()
    assert not LINF.contains(versions[1], x).any()


def test_a_turn_is_drawn_for_every_update_and_all_come() -> None:
    defense = against("random", L2, L1)
    curriculum = defense.curriculum.start(conv_net())
    turns = [curriculum.attack(defense.attack, Progress(step, 100, 3)) for step in range(300)]
    assert turns == [curriculum.attack(defense.attack, Progress(step, 100, 3)) for step in range(300)]
    counts = Counter(attack.turn for attack in turns if isinstance(attack, Alternate))
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 70
    # An attack that a spec puts in its place stays.
    replaced = Pgd(steps=1)
    assert curriculum.attack(replaced, progress()) is replaced


def test_steepest_descent_makes_the_best_of_the_steps() -> None:
    model, x, y = conv_net().eval(), images(16), labels(16)
    threats = (None, ThreatModel("l2", Fraction(1, 2)), ThreatModel("l1", Fraction(4)))
    attack = Msd(threats=threats, step_sizes=(None, None, 1.0), steps=1, start="clean")
    found = attack(model, x, y, LINF, noise(16))
    alone = [
        Pgd(steps=1, start="clean", step_size=size)(model, x, y, threat or LINF, noise(16))
        for threat, size in zip(threats, (None, None, 1.0), strict=True)
    ]
    with torch.no_grad():
        losses = torch.stack([nn.functional.cross_entropy(model(z), y, reduction="none") for z in alone])
    best = losses.argmax(0).tolist()
    assert len(set(best)) > 1
    assert all(torch.equal(found[i], alone[choice][i]) for i, choice in enumerate(best))


def test_steepest_descent_stays_in_the_union() -> None:
    model, x, y = conv_net().eval(), images(16), labels(16)
    attack: Any = against("msd", L2, L1, steps=6).attack
    points = attack(model, x, y, LINF, noise(16))
    inside = [threat.contains(points, x) for threat in (LINF, ThreatModel("l2", L2.eps), ThreatModel("l1", L1.eps))]
    assert torch.stack(inside).any(0).all()


@pytest.mark.parametrize(
    ("combine", "forwards", "input_backwards"),
    [
        ("average", 3 * 4 + 1, 3 * 4),
        ("max", 3 * 4 + 3 + 1, 3 * 4),
        ("random", 4 + 1, 4),
        ("msd", 4 + 3 * 4 + 1, 4),
    ],
)
def test_what_an_update_costs(combine: str, forwards: int, input_backwards: int) -> None:
    model = conv_net()
    with counted(model) as passes:
        train(against(combine, L2, L1, steps=4), model, updates=1)
    assert (passes.forwards, passes.input, passes.weight) == (forwards, input_backwards, 1)
    assert passes.crafting == forwards - 1


SPEC = """\
name: several
data: digits
architecture: small_cnn
threat: {norm: linf, eps: 0.1}
defense: {name: multi_norm, others: [OTHER], steps: 2}
train: {epochs: 3}
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("OTHER", "{norm: linf, eps: 8}", r"defense\.others\.0\.eps: 8 is larger than the pixel range"),
        ("OTHER", "{norm: linf, eps: 0.1, step_size: 2}", r"defense\.others\.0\.step_size: 2 is larger"),
        ("OTHER", "{norm: l3, eps: 0.1}", r"'l3' is not one of the choices"),
        ("OTHER", "{norm: l2, epss: 0.1}", r"unknown parameter of others; did you mean 'eps'\?"),
        ("others: [OTHER], ", "", r"defense\.others: missing"),
        ("epochs: 3", "epochs: 3, eps_warmup: 1", r"train\.eps_warmup: only the spec's threat would grow"),
        ("steps: 2", "attack: fgsm", r"defense\.others: has no effect, because defense\.attack"),
    ],
)
def test_what_a_spec_may_not_say(old: str, new: str, problem: str) -> None:
    text = SPEC.replace(old, new).replace("OTHER", "{norm: l2, eps: 1}")
    with pytest.raises(RobustCliError, match=problem):
        ExperimentSpec.parse(text, "the test")
