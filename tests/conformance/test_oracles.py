"""Attacks and losses against closed forms, formulas in NumPy, and recorded numbers."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from judging import noise, standing
from sine_networks import SineConv, SineLinear, labeled
from torch import Tensor, nn

from robustcli.attacks.carlini_wagner import CarliniWagner
from robustcli.attacks.deepfool import DeepFool
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.losses import LOSSES, kl_divergence
from robustcli.attacks.mim import Mim
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import images, labels, linear_net
from robustcli.defenses import Batch
from robustcli.defenses.min_max import AdversarialCrossEntropy
from robustcli.defenses.natural import CleanCrossEntropy
from robustcli.defenses.trades import TradesLoss
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

pytestmark = pytest.mark.slow

NORMS: list[Norm] = ["linf", "l2", "l1"]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


# Linear models: the worst case has a closed form.


def binary(pixels: int = 64) -> tuple[nn.Module, Tensor]:
    """A linear model of two classes in double precision, and its weights."""
    model = linear_net(pixels, 2, seed=4, dtype=torch.float64)
    weight = model[1].weight.detach()  # type: ignore[index]
    return model, weight


def margin_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Lead of the wrong class, (n,)."""
    with torch.no_grad():
        logits = model(x)
    return (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("start", ["clean", "random"])
def test_pgd_reaches_the_worst_case_of_a_linear_model(norm: Norm, loss: Any, start: Any) -> None:
    """Away from the box, the margin moves by eps times the dual norm of the weights' difference."""
    model, weight = binary()
    x = 0.35 + 0.3 * images(20, dtype=torch.float64)
    y = labels(20, 2)
    threat = ThreatModel(norm, {"linf": Fraction(1, 10), "l2": Fraction(3, 10), "l1": Fraction(3, 10)}[norm])
    dual = torch.linalg.vector_norm(weight[0] - weight[1], ord=DUAL[norm]).item()
    worst = margin_of(model, x, y) + threat.radius * dual
    x_adv = Pgd(steps=100, loss=loss, start=start)(model, x, y, threat, noise(20))
    found = margin_of(model, x_adv, y)
    assert (found <= worst + 1e-9).all()
    slack = {"linf": 1e-9, "l2": 1e-4, "l1": 0.02}[norm] if start == "random" else 1e-9
    assert ((worst - found) <= slack * threat.radius * dual).all()


def worst_delta(gain: np.ndarray, x: np.ndarray, norm: Norm, radius: float) -> np.ndarray:
    """The delta in the ball and the box that maximizes a linear function with gradient `gain`."""
    room = np.where(gain > 0, 1 - x, x)
    if norm == "linf":
        return np.sign(gain) * np.minimum(room, radius)
    if norm == "l1":
        # The budget is spent on the strongest pixels first, each up to the box.
        size = np.zeros_like(room)
        for pixel in np.argsort(-np.abs(gain)):
            size[pixel] = min(room[pixel], radius - size.sum())
        return np.sign(gain) * size
    # l2: proportional to the gradient, cut at the box, as long as the radius allows.
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        is_short = np.linalg.norm(np.minimum(middle * np.abs(gain), room)) < radius
        low, high = (middle, high) if is_short else (low, middle)
    return np.sign(gain) * np.minimum(low * np.abs(gain), room)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["clean", "random"])
def test_pgd_nears_the_worst_case_where_the_box_cuts_the_ball(norm: Norm, start: Any) -> None:
    model, weight = binary()
    x = images(20, dtype=torch.float64)
    y = labels(20, 2)
    threat = ThreatModel(norm, {"linf": Fraction(2, 5), "l2": Fraction(2), "l1": Fraction(5)}[norm])
    gains = (weight[1 - y] - weight[y]).numpy()
    rise = np.array(
        [
            (gain * worst_delta(gain, image, norm, threat.radius)).sum()
            for gain, image in zip(gains, x.flatten(1).numpy(), strict=True)
        ]
    )
    x_adv = Pgd(steps=200, step_size=threat.radius / 20, start=start, loss="margin", keep="best")(
        model, x, y, threat, noise(20)
    )
    found = (margin_of(model, x_adv, y) - margin_of(model, x, y)).numpy()
    assert (found <= rise + 1e-9).all()
    # The l2 projection is not the nearest point where the box cuts the ball, so its fixed point is near the best.
    assert (found >= {"linf": 1 - 1e-9, "l2": 0.97, "l1": 0.97}[norm] * rise).all()


@pytest.mark.parametrize(
    ("norm", "eps", "robust"), [("linf", "0.001275", 30), ("l2", "0.007287", 39), ("l1", "0.028399", 39)]
)
def test_attacks_on_ten_linear_classes_break_only_what_can_be_broken(norm: Norm, eps: str, robust: int) -> None:
    model = SineLinear()
    with torch.no_grad():
        logits = model(model.images)
        y = logits.argmax(1)
        difference = model.weight[y][:, None] - model.weight[None]
        gap = logits.gather(1, y[:, None]) - logits
        radius = (gap / torch.linalg.vector_norm(difference, ord=DUAL[norm], dim=2)).scatter(1, y[:, None], torch.inf)
    nearest = radius.amin(1)
    assert torch.bincount(y, minlength=10).tolist() == [30, 36, 15, 11, 2, 5, 1, 0, 0, 0]
    assert int((nearest > float(eps)).sum()) == robust
    single, x, y = labeled(model)
    threat = ThreatModel(norm, Fraction(eps))
    for attack in (
        Pgd(steps=40, restarts=3, loss="margin", keep="fooled"),
        Pgd(steps=20, loss="dlr", keep="best"),
        Pgd(steps=20),
        Fgsm(),
    ):
        survives = standing(Attacked(attack=attack), single, x, y, threat, noise(100))
        assert survives[nearest > threat.radius * (1 + 1e-4)].all(), "broke what cannot be broken"
        # The nearest class is not always the runner-up.
        is_plain = nearest == radius.gather(1, logits.topk(2, dim=1).indices[:, 1:]).squeeze(1)
        if isinstance(attack, Pgd) and attack.loss == "margin":
            assert not survives[is_plain & (nearest < threat.radius * (1 - 1e-2))].any(), "missed a plain one"


# A planted adversarial example: only near one point is the model wrong, and the gradient points to it.


class Planted(nn.Module):
    """Two logits that depend on the distance to the nearest planted point: class 1 within `reach`, else 0."""

    def __init__(self, points: Tensor, reach: float) -> None:
        super().__init__()
        self.points = points.flatten(1)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        nearest = (x.flatten(1)[:, None] - self.points[None]).square().sum(2).amin(1)
        return torch.stack([torch.zeros_like(nearest), self.reach**2 - nearest], dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("keep", ["last", "best", "fooled"])
def test_planted_adversarial_example_is_found(norm: Norm, loss: Any, keep: Any) -> None:
    """Zimmermann et al., NeurIPS 2022: an attack that misses a planted example proves nothing."""
    threat = ThreatModel(norm, {"linf": Fraction(1, 10), "l2": Fraction(1, 2), "l1": Fraction(2)}[norm])
    x = 0.2 + 0.6 * images(12, dtype=torch.float64)
    delta = threat.sample(x, IndexedNoise(5, torch.arange(12))) - x
    delta = delta * (0.9 * threat.radius / threat.size(delta)).view(-1, 1, 1, 1)
    assert threat.contains(x + delta, x).all()
    model = Planted(x + delta, reach=0.25 * float(delta.flatten(1).norm(dim=1).min()))
    y = torch.zeros(12, dtype=torch.int64)
    assert (model(x).argmax(1) == y).all()
    attack = Pgd(steps=400, step_size=threat.radius / 200, loss=loss, keep=keep, start="clean")
    assert (model(attack(model, x, y, threat, noise(12))).argmax(1) != y).all()


# Losses: the formulas in NumPy, and gradients against finite differences.


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits_of(count: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn((count, classes), generator=generator, dtype=torch.float64)


Z, Z_ADV, Y = logits_of(7, 5, 1), logits_of(7, 5, 2), labels(7, 5)
SHARES = logits_of(7, 5, 3).softmax(1)
IDENTITY = nn.Identity()


def score(name: Any, logits: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    """The loss of an attack on a model whose images are its logits."""
    return LOSSES[name].score(logits, LOSSES[name].refer(IDENTITY, clean, y))


def ce(z: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return np.array(-(shares * np.log(softmax(z))).sum(1))


def kl(z: np.ndarray, z_adv: np.ndarray) -> np.ndarray:
    p, p_adv = softmax(z), softmax(z_adv)
    return np.array((p * (np.log(p) - np.log(p_adv))).sum(1))


def one_hot() -> np.ndarray:
    return np.eye(5)[Y.numpy()]


def test_attack_losses_are_their_formulas() -> None:
    z, z_adv, rows = Z.numpy(), Z_ADV.numpy(), np.arange(7)
    assert score("ce", Z_ADV, Z, Y).numpy() == pytest.approx(ce(z_adv, one_hot()))
    assert score("ce", Z_ADV, Z, SHARES).numpy() == pytest.approx(ce(z_adv, SHARES.numpy()))
    assert score("kl", Z_ADV, Z, Y).numpy() == pytest.approx(kl(z, z_adv))
    squared = ((softmax(z_adv) - softmax(z)) ** 2).sum(1)
    assert score("squared", Z_ADV, Z, Y).numpy() == pytest.approx(squared)
    others = np.where(one_hot() == 1, -np.inf, z_adv).max(1)
    margin = others - z_adv[rows, Y.numpy()]
    assert score("margin", Z_ADV, Z, Y).numpy() == pytest.approx(margin)
    ordered = -np.sort(-z_adv, axis=1)
    assert score("dlr", Z_ADV, Z, Y).numpy() == pytest.approx(margin / (ordered[:, 0] - ordered[:, 2]))
    is_wrong = z_adv.argmax(1) != Y.numpy()
    assert ((margin > 0) == is_wrong).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_attack_losses_have_the_gradient_of_finite_differences(name: Any) -> None:
    logits = Z_ADV.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: score(name, z, Z, Y), (logits,))


@pytest.mark.parametrize("name", list(LOSSES))
def test_attack_losses_do_not_see_a_shift_of_all_logits(name: Any) -> None:
    shifted = score(name, Z_ADV + 11, Z + 7, Y)
    assert torch.allclose(shifted, score(name, Z_ADV, Z, Y), rtol=1e-9, atol=1e-9)


def test_margin_and_dlr_take_the_label_of_class_shares() -> None:
    for name in ("margin", "dlr"):
        assert torch.equal(score(name, Z_ADV, Z, SHARES), score(name, Z_ADV, Z, SHARES.argmax(1)))


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_that_rest_at_the_clean_image_are_those_that_say_so(name: Any) -> None:
    """Not negative, and zero with a zero gradient at the clean prediction: an attack cannot start there."""
    logits = Z.clone().requires_grad_()
    value = score(name, logits, Z, Y)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert (grad.abs().max() < 1e-12) == LOSSES[name].rests_at_x
    if LOSSES[name].rests_at_x:
        assert (score(name, Z_ADV, Z, Y) >= 0).all()
        assert value.abs().max() < 1e-12


def outer(loss: Any, z: Tensor, z_adv: Tensor, y: Tensor = Y) -> Tensor:
    """An outer loss of a model whose images are its logits."""
    value: Tensor = loss(IDENTITY, Batch(z, y, z_adv))
    return value


def trades_loss(beta: float = 6.0, clean_forwards: int = 1, detach_target: bool = False) -> TradesLoss:
    return TradesLoss(beta=beta, clean_forwards=clean_forwards, detach_target=detach_target)


def test_outer_losses_are_their_formulas() -> None:
    z, z_adv = Z.numpy(), Z_ADV.numpy()
    assert outer(AdversarialCrossEntropy(), Z, Z_ADV).item() == pytest.approx(ce(z_adv, one_hot()).mean())
    assert outer(AdversarialCrossEntropy(), Z, Z_ADV, SHARES).item() == pytest.approx(ce(z_adv, SHARES.numpy()).mean())
    for smoothing in (0.0, 0.3):
        # (1 - s) on the label and s / k on each of the k classes, the label's own included.
        shares = (1 - smoothing) * one_hot() + smoothing / 5
        natural = CleanCrossEntropy(label_smoothing=smoothing)
        assert outer(natural, Z, Z_ADV).item() == pytest.approx(ce(z, shares).mean())
    for clean_forwards in (1, 2):
        for is_detached in (False, True):
            loss = trades_loss(2.5, clean_forwards, is_detached)
            expected = (ce(z, one_hot()) + 2.5 * kl(z, z_adv)).mean()
            assert outer(loss, Z, Z_ADV).item() == pytest.approx(expected)
            expected = (ce(z, SHARES.numpy()) + 2.5 * kl(z, z_adv)).mean()
            assert outer(loss, Z, Z_ADV, SHARES).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "loss",
    [AdversarialCrossEntropy(), CleanCrossEntropy(label_smoothing=0.1), trades_loss(), trades_loss(clean_forwards=2)],
    ids=["pgd_at", "natural", "trades", "trades, two clean forwards"],
)
def test_outer_losses_have_the_gradient_of_finite_differences(loss: Any) -> None:
    z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: outer(loss, a, b), (z, z_adv))


def test_gradients_of_the_divergence_are_those_of_the_paper() -> None:
    """d KL / d f(x') = p' - p; d KL / d f(x) = p (r - sum p r) with r = log p - log p'."""
    z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    grad, grad_adv = torch.autograd.grad(kl_divergence(z_adv, z.log_softmax(1)).sum(), (z, z_adv))
    p, p_adv = softmax(Z.numpy()), softmax(Z_ADV.numpy())
    ratio = np.log(p) - np.log(p_adv)
    assert grad_adv.numpy() == pytest.approx(p_adv - p, abs=1e-12)
    assert grad.numpy() == pytest.approx(p * (ratio - (p * ratio).sum(1, keepdims=True)), abs=1e-12)


@pytest.mark.parametrize("clean_forwards", [1, 2])
def test_detached_target_gives_the_clean_prediction_no_gradient_of_the_divergence(clean_forwards: int) -> None:
    gradients = {}
    for is_detached in (False, True):
        z, z_adv = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
        loss = outer(trades_loss(6.0, clean_forwards, is_detached), z, z_adv)
        gradients[is_detached] = torch.autograd.grad(loss, (z, z_adv))
    p, p_adv = softmax(Z.numpy()), softmax(Z_ADV.numpy())
    natural = (p - one_hot()) / 7
    ratio = np.log(p) - np.log(p_adv)
    target = 6 * p * (ratio - (p * ratio).sum(1, keepdims=True)) / 7
    assert gradients[True][0].numpy() == pytest.approx(natural, abs=1e-12)
    assert gradients[False][0].numpy() == pytest.approx(natural + target, abs=1e-12)
    for is_detached in (False, True):
        assert gradients[is_detached][1].numpy() == pytest.approx(6 * (p_adv - p) / 7, abs=1e-12)


# A small network, with numbers recorded from other implementations.


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor, Tensor]:
    return labeled(SineConv())


def test_small_network_is_the_recorded_one(small: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = small
    with torch.no_grad():
        logits = model(x)
    assert x.double().sum().item() == pytest.approx(6144.784970, abs=1e-3)
    recorded = "9858079278927892679322789927789942778994276799922278899926678899"
    assert len(recorded) == 64
    assert "".join(map(str, y.tolist()[:21])) == "985807927892789267932"
    assert nn.functional.cross_entropy(logits, y).item() == pytest.approx(2.073300, rel=1e-4)
    expected = [-0.17471, -0.141022, 0.152575, 0.473448, 0.504537, 0.323394, -0.151739, -0.592969, -0.291432, 0.507944]
    assert logits[0].tolist() == pytest.approx(expected, abs=2e-5)
    margins = -LOSSES["margin"].score(logits, y)[:4]
    assert margins.tolist() == pytest.approx([0.003406, 0.0493, 0.077431, 0.059121], abs=2e-5)


def pgd(steps: int, share: int, loss: Any = "ce") -> dict[str, Any]:
    """PGD from the clean image with steps of a share of the radius."""
    return {"steps": steps, "start": "clean", "loss": loss, "share": share}


@pytest.mark.parametrize(
    ("norm", "eps", "settings", "robust", "mean_ce"),
    [
        ("linf", "0.001", None, 39, 2.127415),
        ("linf", "0.002", None, 24, 2.181435),
        ("linf", "0.001", pgd(10, 4), 40, 2.128101),
        ("linf", "0.002", pgd(10, 4), 24, 2.184196),
        ("linf", "0.001", pgd(20, 10), 40, 2.128065),
        ("linf", "0.002", pgd(20, 10), 24, 2.184106),
        ("linf", "0.001", pgd(20, 10, "margin"), 29, 2.109199),
        ("linf", "0.002", pgd(20, 10, "margin"), 12, 2.146807),
        ("linf", "0.001", pgd(100, 20, "margin"), 29, 2.109255),
        ("linf", "0.002", pgd(100, 20, "margin"), 12, 2.147244),
        ("l2", "0.01", pgd(10, 4), 43, 2.123347),
        ("l2", "0.02", pgd(10, 4), 24, 2.174699),
    ],
)
def test_attacks_without_noise_give_the_recorded_numbers(
    small: tuple[nn.Module, Tensor, Tensor],
    norm: Norm,
    eps: str,
    settings: dict[str, Any] | None,
    robust: int,
    mean_ce: float,
) -> None:
    """Robust count and mean loss after the last step, recorded from two other implementations."""
    model, x, y = small
    threat = ThreatModel(norm, Fraction(eps))
    attack: Fgsm | Pgd = Fgsm()
    if settings is not None:
        share = settings["share"]
        attack = Pgd(**{k: v for k, v in settings.items() if k != "share"}, step_size=threat.radius / share)
    with torch.no_grad():
        logits = model(attack(model, x, y, threat, noise(64)).detach())
    assert int((logits.argmax(1) == y).sum()) == robust
    assert nn.functional.cross_entropy(logits, y).item() == pytest.approx(mean_ce, rel=1e-4)


@pytest.mark.parametrize(("eps", "robust", "mean_ce"), [("0.001", 40, 2.127984), ("0.002", 24, 2.183778)])
def test_momentum_gives_the_recorded_numbers(
    small: tuple[nn.Module, Tensor, Tensor], eps: str, robust: int, mean_ce: float
) -> None:
    """Ten steps of a quarter of the radius from the clean image, mu = 1."""
    model, x, y = small
    with torch.no_grad():
        logits = model(Mim(steps=10)(model, x, y, ThreatModel("linf", Fraction(eps)), noise(64)))
    assert int((logits.argmax(1) == y).sum()) == robust
    assert nn.functional.cross_entropy(logits, y).item() == pytest.approx(mean_ce, rel=1e-6)


def test_deepfool_gives_the_recorded_distances(small: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = small
    threat = ThreatModel("l2", Fraction(10))
    x_adv = DeepFool()(model, x, y, threat, noise(64))
    with torch.no_grad():
        assert (model(x_adv).argmax(1) != y).all()
    distances = threat.size(x_adv - x)
    assert distances.mean().item() == pytest.approx(0.012277, rel=1e-4)
    assert distances.median().item() == pytest.approx(0.009396, rel=1e-4)
    assert distances[:4].tolist() == pytest.approx([0.000603, 0.011849, 0.032541, 0.009111], rel=2e-4)


@pytest.mark.parametrize(("eps", "robust"), [("0.01", 29), pytest.param("0.02", 13, marks=pytest.mark.full)])
def test_carlini_wagner_breaks_what_autoattack_breaks(
    small: tuple[nn.Module, Tensor, Tensor], eps: str, robust: int
) -> None:
    """All but one image, with steps short enough for these distances."""
    model, x, y = small
    survives = standing(
        Attacked(attack=CarliniWagner(lr=0.001)), model, x, y, ThreatModel("l2", Fraction(eps)), noise(64)
    )
    assert robust - 1 <= int(survives.sum()) <= robust + 1


# Survivors of AutoAttack (pyautoattack 0.2.0, version standard), image 0 first; test_autoattack.py runs it.
AUTOATTACK = [
    ("linf", "0.001", "0110000101111101010000110110001001110100100000101010110000010110"),
    ("linf", "0.002", "0010000000111000000000100000001001100100000000100000010000000010"),
    ("l2", "0.01", "0110000101111101010010110110001001110100100000101010110000010110"),
    ("l2", "0.02", "0010000001111000000000100000001001100100000000100000010000000010"),
    ("l1", "0.06", "0010000101111101010000110110001001100100100000101010110000010110"),
    ("l1", "0.12", "0010000000111000000000000000001001000100000000100000010000000010"),
]


@pytest.mark.parametrize(("norm", "eps", "flags"), AUTOATTACK)
def test_pgd_and_autoattack_agree(small: tuple[nn.Module, Tensor, Tensor], norm: Norm, eps: str, flags: str) -> None:
    """AutoAttack leaves at most one survivor more than PGD."""
    model, x, y = small
    by_autoattack = torch.tensor([flag == "1" for flag in flags])
    attack = Pgd(steps=40, loss="margin", keep="fooled", restarts=2)
    by_pgd = standing(Attacked(attack=attack), model, x, y, ThreatModel(norm, Fraction(eps)), noise(64))
    assert int((by_autoattack & ~by_pgd).sum()) <= 1, "PGD breaks what AutoAttack does not"
    assert int((by_pgd & ~by_autoattack).sum()) <= 3, "PGD misses what AutoAttack breaks"


def test_survivors_do_not_depend_on_batches(small: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = small
    threat = ThreatModel("linf", Fraction("0.001"))
    found = [
        standing(Attacked(attack=Pgd(steps=5, keep="fooled"), batch_size=size), model, x, y, threat, noise(64))
        for size in (1, 7, 64)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
