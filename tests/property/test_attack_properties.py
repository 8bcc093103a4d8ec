"""A longer search never finds less, and the result for an image depends only on that image."""

from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import standing
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.carlini_wagner import CarliniWagner
from robustcli.attacks.crafting import crafting
from robustcli.attacks.deepfool import DeepFool
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.hop_skip_jump import HopSkipJump
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.mim import Mim
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.spsa import Spsa
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.clean import Clean
from robustcli.registry.catalog import catalog
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise, Noise, StreamNoise
from robustcli.threat.threat import ThreatModel

COUNT = 10
RADII: dict[Norm, Fraction] = {"linf": Fraction(3, 100), "l2": Fraction(1, 4), "l1": Fraction(1)}
LOSS_NAMES: list[Literal["ce", "kl", "squared", "margin", "dlr"]] = ["ce", "kl", "squared", "margin", "dlr"]

norms = st.sampled_from(list(RADII))
seeds = st.integers(0, 2**20)


def threat(norm: Norm) -> ThreatModel:
    return ThreatModel(norm, RADII[norm])


def setting(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images, and its predictions as labels, a few of them changed."""
    model = conv_net(seed=seed % 3, dtype=torch.float64).eval()
    x = images(COUNT, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:2] = labels(2, seed=seed)
    return model, x, y


def source(kind: str, seed: int) -> Noise:
    if kind == "indexed":
        return IndexedNoise(seed, torch.arange(COUNT))
    return StreamNoise.on(torch.device("cpu")).reseed(seed, "attack")


def losses(name: Any, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    loss = LOSSES[name]
    with torch.no_grad():
        return loss.score(model(x_adv), loss.refer(model, x, y))


def is_fooled(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(x_adv).argmax(1) != y)


@given(norms, st.sampled_from(LOSS_NAMES), st.sampled_from(["indexed", "stream"]), seeds, st.integers(0, 6))
def test_more_steps_never_lower_the_best_loss(norm: Norm, loss: Any, kind: str, seed: int, steps: int) -> None:
    model, x, y = setting(seed)
    fewer, more = (
        losses(
            loss, model, x, y, Pgd(steps=count, loss=loss, keep="best")(model, x, y, threat(norm), source(kind, seed))
        )
        for count in (steps, steps + 3)
    )
    assert (more >= fewer - 1e-12).all()


@given(
    norms,
    st.sampled_from(LOSS_NAMES),
    st.sampled_from(["indexed", "stream"]),
    seeds,
    st.sampled_from(["best", "last"]),
    st.sampled_from(["random", "gaussian"]),
)
@settings(max_examples=40)
def test_more_restarts_never_lower_the_best_loss(
    norm: Norm, loss: Any, kind: str, seed: int, keep: Any, start: Any
) -> None:
    model, x, y = setting(seed)
    found = []
    for restarts in (1, 2, 4):
        attack = Pgd(steps=2, restarts=restarts, loss=loss, keep=keep, start=start)
        found.append(losses(loss, model, x, y, attack(model, x, y, threat(norm), source(kind, seed))))
    assert (found[1] >= found[0] - 1e-12).all()
    assert (found[2] >= found[1] - 1e-12).all()
    assert (found[2] > found[0]).any(), "restarts find nothing new"


@given(norms, st.sampled_from(LOSS_NAMES), seeds, st.integers(1, 3), st.sampled_from(["random", "clean", "gaussian"]))
@settings(max_examples=40)
def test_stopping_when_fooled_fools_all_that_the_others_fool(
    norm: Norm, loss: Any, seed: int, restarts: int, start: Any
) -> None:
    if start == "clean":
        restarts = 1
        loss = "ce" if LOSSES[loss].rests_at_x else loss
    model, x, y = setting(seed)
    found: dict[str, Tensor] = {}
    for keep in ("last", "best", "fooled"):
        attack = Pgd(steps=4, restarts=restarts, loss=loss, keep=keep, start=start)
        found[keep] = attack(model, x, y, threat(norm), source("indexed", seed))
    fooled = is_fooled(model, found["fooled"], y)
    for keep in ("last", "best"):
        missed = is_fooled(model, found[keep], y) & ~fooled
        assert not missed.any(), f"{keep} fools {int(missed.sum())} more"
    # Survivors were searched to the end, and their best point was kept.
    hold_out = losses(loss, model, x, y, found["fooled"])[~fooled]
    assert torch.allclose(hold_out, losses(loss, model, x, y, found["best"])[~fooled], rtol=0, atol=1e-12)


@given(norms, seeds)
def test_an_image_leaves_the_batch_with_its_first_misclassified_point(norm: Norm, seed: int) -> None:
    model, x, y = setting(seed)
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, _inputs, logits: sizes.append(len(logits)))
    found = Pgd(steps=4, start="clean", keep="fooled")(model, x, y, threat(norm), source("indexed", seed))
    hook.remove()
    walked = [Pgd(steps=steps, start="clean")(model, x, y, threat(norm), source("indexed", seed)) for steps in range(5)]
    fooled = torch.stack([is_fooled(model, points, y) for points in walked])
    still_there = (~fooled).cumprod(0).bool()
    expected = [COUNT, *still_there.sum(1).tolist()[:-1]]
    assert sizes == [size for size in expected if size]
    for image in range(COUNT):
        if fooled[:, image].any():
            first = int(fooled[:, image].int().argmax())
            assert torch.allclose(found[image], walked[first][image], rtol=0, atol=1e-9)


@given(
    norms,
    st.sampled_from(LOSS_NAMES),
    st.sampled_from(["last", "best", "fooled"]),
    st.sampled_from(["random", "gaussian"]),
    st.integers(1, 2),
    seeds,
    st.integers(1, COUNT),
)
@settings(max_examples=40)
@pytest.mark.slow
def test_attacking_a_batch_is_attacking_its_parts(
    norm: Norm, loss: Any, keep: Any, start: Any, restarts: int, seed: int, size: int
) -> None:
    model, x, y = setting(seed)
    attack = Pgd(steps=3, loss=loss, keep=keep, start=start, restarts=restarts)
    noise = IndexedNoise(seed, torch.arange(COUNT))
    together = attack(model, x, y, threat(norm), noise)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    for part in order.split(size):
        alone = attack(model, x[part], y[part], threat(norm), IndexedNoise(seed, part))
        assert torch.allclose(alone, together[part], rtol=0, atol=1e-9)


@given(
    norms,
    st.sampled_from(LOSS_NAMES),
    st.sampled_from(["last", "best", "fooled"]),
    st.integers(0, 4),
    st.sampled_from([1, 5, 50]),
    seeds,
)
def test_every_pgd_stays_inside(norm: Norm, loss: Any, keep: Any, steps: int, stride: int, seed: int) -> None:
    """Also with steps far longer than the ball is wide."""
    model, x, y = setting(seed)
    model, x = model.float(), x.float()
    size = stride * threat(norm).radius
    for start in ("random", "gaussian"):
        attack = Pgd(steps=steps, step_size=size, start=start, start_std=0.5, loss=loss, keep=keep)
        assert threat(norm).contains(attack(model, x, y, threat(norm), source("indexed", seed)), x).all()


@given(norms, st.sampled_from(["ce", "margin", "dlr"]), seeds)
def test_fgsm_is_one_whole_step_of_pgd(norm: Norm, loss: Any, seed: int) -> None:
    model, x, y = setting(seed)
    one_step = Pgd(steps=1, step_size=threat(norm).radius, start="clean", loss=loss)
    noise = source("indexed", seed)
    assert torch.equal(Fgsm(loss=loss)(model, x, y, threat(norm), noise), one_step(model, x, y, threat(norm), noise))


@given(seeds)
def test_a_step_of_two_radii_reaches_a_corner_of_the_cube(seed: int) -> None:
    """From any start: delta = eps sign(gradient), then the box."""
    model, x, y = setting(seed)
    starts: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _module, inputs: starts.append(inputs[0].detach().clone()))
    found = Pgd(steps=1, step_size=2.5 * threat("linf").radius)(model, x, y, threat("linf"), source("indexed", seed))
    hook.remove()
    (points,) = starts
    assert not torch.equal(points, x)
    points.requires_grad_()
    nn.functional.cross_entropy(model(points), y).backward()
    assert points.grad is not None
    expected = (x + threat("linf").radius * points.grad.sign()).clamp(0, 1)
    is_moved = points.grad != 0
    assert torch.allclose(found[is_moved], expected[is_moved], rtol=0, atol=1e-15)


@given(norms, seeds)
def test_attacks_raise_the_loss(norm: Norm, seed: int) -> None:
    """With the last point in the mean; with the best point from a clean start for every image."""
    model, x, y = setting(seed)
    before = losses("ce", model, x, y, x)
    last = Pgd(steps=10)(model, x, y, threat(norm), source("indexed", seed))
    assert losses("ce", model, x, y, last).mean() > before.mean()
    best = Pgd(steps=10, start="clean", keep="best")(model, x, y, threat(norm), source("indexed", seed))
    assert (losses("ce", model, x, y, best) >= before - 1e-12).all()


@pytest.mark.slow
@given(norms, seeds, st.integers(1, COUNT), st.sampled_from(["last", "best", "fooled"]))
def test_accuracy_does_not_depend_on_the_batch_size(norm: Norm, seed: int, size: int, keep: Any) -> None:
    model, x, y = setting(seed)
    noise = IndexedNoise(seed, torch.arange(COUNT))
    attack = Pgd(steps=3, keep=keep)
    whole = standing(Attacked(attack=attack), model, x, y, threat(norm), noise)
    assert torch.equal(standing(Attacked(attack=attack, batch_size=size), model, x, y, threat(norm), noise), whole)
    clean = standing(Clean(), model, x, y, threat(norm), noise)
    assert torch.equal(standing(Clean(batch_size=size), model, x, y, threat(norm), noise), clean)
    assert not (whole & ~clean).any()


@given(norms, seeds)
def test_a_smaller_radius_breaks_fewer_in_a_linear_model(norm: Norm, seed: int) -> None:
    """With one linear score the worst case grows with the radius."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, dtype=torch.float64))
    x = images(COUNT, seed=seed, dtype=torch.float64)
    y = labels(COUNT, 2, seed=seed)
    counts = []
    for share in (0, 1, 2, 3):
        wider = ThreatModel(norm, RADII[norm] * share)
        attacked = Attacked(attack=Pgd(steps=8, start="clean"))
        counts.append(int(standing(attacked, model, x, y, wider, IndexedNoise(0, torch.arange(COUNT))).sum()))
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("attack_bn", ["eval", "train", "batch_no_update"])
def test_attack_modes_move_statistics_as_they_say(attack_bn: Any) -> None:
    """Train mode moves running statistics with every forward; the other two leave them."""
    model, x, y = conv_net().train(), images(COUNT), labels(COUNT)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    before = int(norm.num_batches_tracked)
    with crafting(model, attack_bn):
        Pgd(steps=3)(model, x, y, threat("linf"), source("indexed", 0))
    assert int(norm.num_batches_tracked) - before == (3 if attack_bn == "train" else 0)


def test_batch_statistics_are_used_without_being_kept() -> None:
    model, x = conv_net(dropout=0.9).train(), images(COUNT)
    with torch.no_grad():
        with crafting(model, "batch_no_update"):
            found = model(x)
        with crafting(model, "eval"):
            running = model(x)
        # Dropout is off in both, so train mode is compared without it.
        dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
        dropout.eval()
        by_batch = model(x)
    assert torch.equal(found, by_batch)
    assert not torch.allclose(found, running)


# Cheap settings of attacks that are not forms of PGD.
OTHERS: dict[str, Attack] = {
    "mim, best": Mim(steps=3, keep="best", start="random"),
    "mim, fooled": Mim(steps=4, keep="fooled"),
    "deepfool": DeepFool(steps=4),
    "carlini_wagner": CarliniWagner(steps=20, searches=3, c=1, lr=0.03),
    "carlini_wagner, nearest": CarliniWagner(steps=20, searches=3, c=1, lr=0.03, keep="nearest"),
    "spsa": Spsa(steps=3, samples=9),
    "hop_skip_jump": HopSkipJump(queries=150, samples=8),
    "hop_skip_jump, nearest": HopSkipJump(queries=150, samples=8, keep="nearest"),
}
MINIMUM_NORM = [name for name in OTHERS if name.split(",")[0] in ("deepfool", "carlini_wagner", "hop_skip_jump")]


def norm_for(name: str, norm: Norm) -> Norm:
    """The requested norm if the attack supports it, else a supported one."""
    known = catalog("attacks")[name.split(",")[0]].norms
    return norm if norm in known else known[0]


@given(norms, st.sampled_from(sorted(OTHERS)), seeds, st.sampled_from([0, 0.1, 1, 30]), st.integers(1, COUNT))
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_other_attacks_stay_inside_and_treat_each_image_independently(
    norm: Norm, name: str, seed: int, stretch: float, size: int
) -> None:
    model, x, y = setting(seed)
    norm = norm_for(name, norm)
    ball = ThreatModel(norm, min(RADII[norm] * Fraction(stretch), Fraction(1 if norm == "linf" else 1000)))
    together = OTHERS[name](model, x, y, ball, source("indexed", seed))
    assert ball.contains(together, x).all()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    for part in order.split(size):
        alone = OTHERS[name](model, x[part], y[part], ball, IndexedNoise(seed, part))
        assert torch.allclose(alone, together[part], rtol=0, atol=1e-8)


@given(norms, st.sampled_from(MINIMUM_NORM), st.sampled_from(["indexed", "stream"]), seeds)
@settings(max_examples=40, deadline=None)
def test_minimum_norm_attacks_return_misclassified_points_or_the_image(
    norm: Norm, name: str, kind: str, seed: int
) -> None:
    """The nearest adversarial point of a misclassified image is the image."""
    model, x, y = setting(seed)
    ball = threat(norm_for(name, norm))
    found = OTHERS[name](model, x, y, ball, source(kind, seed))
    is_same = (found == x).flatten(1).all(1)
    assert (is_same | is_fooled(model, found, y)).all()
    assert is_same[is_fooled(model, x, y)].all()


@given(norms, seeds, st.sampled_from(["ce", "margin", "dlr"]), st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_more_steps_of_momentum_never_lower_the_best_loss(norm: Norm, seed: int, loss: Any, momentum: float) -> None:
    model, x, y = setting(seed)
    found = []
    for steps in (0, 1, 4, 9):
        attack = Mim(steps=steps, momentum=momentum, loss=loss, keep="best")
        found.append(losses(loss, model, x, y, attack(model, x, y, threat(norm), source("indexed", seed))))
    for fewer, more in pairwise(found):
        assert (more >= fewer - 1e-12).all()
