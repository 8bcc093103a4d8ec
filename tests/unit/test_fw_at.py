"""The Frank-Wolfe attack against its closed forms, and training with it."""

from fractions import Fraction
from typing import Any, Literal

import pytest
import torch
from small_steps import LINF, counted, same, train
from torch import Tensor, nn

from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.frank_wolfe import FrankWolfe
from robustcli.contracts.networks import conv_net, images, labels, linear_net
from robustcli.data.targets import Labels
from robustcli.defenses.fw_at import fw_at
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

COUNT = 6
# Far from the box, so that nothing is cut.
X = 0.3 + 0.4 * images(COUNT, dtype=torch.float64)
Y = labels(COUNT)
EPS = Fraction(8, 255)


def noise() -> IndexedNoise:
    return IndexedNoise(3, torch.arange(COUNT))


class Scripted(nn.Module):
    """A model whose input gradient at its k-th call is the k-th sign pattern; its logits mean nothing else."""

    def __init__(self, signs: list[Tensor]) -> None:
        super().__init__()
        self.left = list(signs)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.left.pop(0)).flatten(1).sum(1)
        # Raising the cross-entropy of class 0 means raising the logit of class 1.
        return torch.stack([torch.zeros_like(score), score], 1)


def signs(steps: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2.0 * torch.randint(2, X.shape, generator=generator, dtype=torch.float64) - 1 for _ in range(steps)]


def scripted(steps: int, pattern: list[Tensor], threat: ThreatModel = LINF) -> Tensor:
    zeros = torch.zeros(COUNT, dtype=torch.int64)
    return FrankWolfe(steps=steps).perturbation(Scripted(pattern), X, zeros, threat, noise())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_step_is_fgsm(norm: Norm) -> None:
    threat, model = ThreatModel(norm, EPS), conv_net().eval()
    x = images(COUNT)
    found = FrankWolfe(steps=1)(model, x, Y, threat, noise())
    expected = Fgsm()(model, x, Y, threat, noise())
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10])
def test_the_perturbation_is_the_weighted_mean_of_its_corners(steps: int) -> None:
    """For c = 2 corner k has the weight 2 (k + 1) / (K (K + 1)); the weights add up to 1."""
    pattern = signs(steps)
    weights = [2 * (k + 1) / (steps * (steps + 1)) for k in range(steps)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(weight * float(EPS) * sign for weight, sign in zip(weights, pattern, strict=True))
    assert torch.allclose(scripted(steps, pattern), torch.as_tensor(expected), rtol=0, atol=1e-15)


@pytest.mark.parametrize("c", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_number_of_steps_stays_in_the_ball_without_a_projection(c: float, steps: int, norm: Norm) -> None:
    threat = ThreatModel(norm, EPS)
    for start in ("clean", "random"):
        attack = FrankWolfe(steps=steps, c=c, start=start)
        delta = attack.perturbation(conv_net(dtype=torch.float64).eval(), X, Y, threat, noise())
        assert (threat.size(delta) <= threat.radius * (1 + 1e-9)).all()


@pytest.mark.parametrize("steps", [2, 3, 5, 10])
def test_distortion_measures_how_much_the_corners_agree(steps: int) -> None:
    """d^2 = 1 - 2 sum_{i<j} a_i a_j (1 - cos_ij), with cos_ij the mean product of the signs of steps i and j."""
    pattern = signs(steps)
    a = [2 * (k + 1) / (steps * (steps + 1)) for k in range(steps)]
    expected = torch.ones(COUNT, dtype=torch.float64)
    for i in range(steps):
        for j in range(i + 1, steps):
            cosine = (pattern[i] * pattern[j]).flatten(1).mean(1)
            expected -= 2 * a[i] * a[j] * (1 - cosine)
    assert torch.allclose(LINF.distortion(scripted(steps, pattern)), expected.sqrt(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_distortion_of_two_steps_is_a_matter_of_the_share_of_signs_that_stay(share: float) -> None:
    first = signs(1)[0]
    stays = torch.zeros(64, dtype=torch.float64)
    stays[: int(64 * share)] = 1
    second = first * (2 * stays.view(1, 1, 8, 8) - 1)
    expected = (share + (1 - share) / 9) ** 0.5
    found = LINF.distortion(scripted(2, [first, second]))
    assert torch.allclose(found, torch.full_like(found, expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps", "distortion"), [(2, 0.745), (3, 0.624), (5, 0.494), (7, 0.423), (10, 0.357)])
def test_independent_signs_have_a_distortion_that_falls_with_the_steps(steps: int, distortion: float) -> None:
    threat = ThreatModel("linf", EPS)
    x = torch.full((4, 3, 64, 64), 0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(steps)
    pattern = [2.0 * torch.randint(2, x.shape, generator=generator, dtype=torch.float64) - 1 for _ in range(steps)]
    attack, zeros = FrankWolfe(steps=steps), torch.zeros(4, dtype=torch.int64)
    delta = attack.perturbation(Scripted(pattern), x, zeros, threat, IndexedNoise(0, torch.arange(4)))
    assert threat.distortion(delta).mean().item() == pytest.approx(distortion, abs=0.005)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_model_whose_gradient_never_turns_has_distortion_1(steps: int, norm: Norm) -> None:
    # Two classes: with more, the gradient of the cross-entropy turns although the logits are linear.
    model = linear_net(64, classes=2, dtype=torch.float64)
    threat = ThreatModel(norm, EPS)
    _, report = FrankWolfe(steps=steps).search(model, X, Y % 2, threat, noise())
    assert report["distortion"].item() == pytest.approx(1)


def test_distortion_does_not_depend_on_the_box() -> None:
    """Half of the pixels are at the border, where images are clipped but the perturbation is not."""
    x = (images(COUNT, dtype=torch.float64) > 0.5).double()
    model = linear_net(64, classes=2, dtype=torch.float64)
    x_adv, report = FrankWolfe(steps=3).search(model, x, Y % 2, LINF, noise())
    assert report["distortion"].item() == pytest.approx(1)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert LINF.distortion(x_adv - x).mean() < 0.9


def test_a_ball_of_radius_0_has_distortion_1() -> None:
    point = ThreatModel("linf", Fraction(0))
    x_adv, report = FrankWolfe(steps=3).search(conv_net(dtype=torch.float64).eval(), X, Y, point, noise())
    assert torch.equal(x_adv, X)
    assert report["distortion"].item() == 1


def test_fw_at_with_one_step_is_training_on_fgsm() -> None:
    fgsm_at = MinMax(attack=Fgsm(), loss=AdversarialCrossEntropy())
    assert same(train(fw_at(steps=1), conv_net()), train(fgsm_at, conv_net()))


@pytest.mark.parametrize("start", ["clean", "random"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_step_costs_k_attack_steps_and_one_branch(start: Literal["clean", "random"], steps: int) -> None:
    model = conv_net()
    with counted(model) as passes:
        train(fw_at(steps=steps, start=start), model, updates=1)
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (steps + 1, steps, steps, 1)


def test_the_distortion_is_recorded() -> None:
    model = conv_net().train()
    step: Any = fw_at().start(model, torch.optim.SGD(model.parameters(), lr=0.1), noise())
    metrics = step(images(COUNT), Labels.of(labels(COUNT)), LINF, None)
    assert set(metrics) == {"loss", "distortion"}
    assert 0 < metrics["distortion"] <= 1
