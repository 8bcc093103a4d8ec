"""Early-stopped PGD against a loop that handles one image at a time, and training whose patience grows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_steps import LINF, counted, labeled, same, train
from torch import Tensor

from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.early_stopped_pgd import EarlyStoppedPgd
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.defenses.fat import fat
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.threat.noise import IndexedNoise, StreamNoise

COUNT = 24
X = images(COUNT, dtype=torch.float64)
MODEL = conv_net(dtype=torch.float64).eval()
# Two thirds are right at first: some become wrong on the way, one third is wrong from the start.
with torch.no_grad():
    Y = torch.where(torch.arange(COUNT) % 3 > 0, MODEL(X).argmax(1), labels(COUNT))


def noise() -> IndexedNoise:
    return IndexedNoise(3, torch.arange(COUNT))


def plain_loop(patience: int, noise_std: float, steps: int = 6) -> tuple[Tensor, list[int]]:
    """One image at a time; the noise is drawn as for the batch."""
    source = noise()
    starts = LINF.sample(X, source)
    draws = [source.normal(X) for _ in range(steps)] if noise_std else [torch.zeros_like(X)] * steps
    ends, taken = [], []
    for i in range(COUNT):
        x, y, point, left, count = X[i : i + 1], Y[i : i + 1], starts[i : i + 1], patience, 0
        for step in range(steps):
            leaf = point.clone().requires_grad_()
            logits = MODEL(leaf)
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
            if logits.argmax() != y:
                if left == 0:
                    break
                left -= 1
            point = point + 2 / 255 * slope.sign() + noise_std * draws[step][i : i + 1]
            point = torch.clamp(point, x - 8 / 255, x + 8 / 255).clamp(0, 1)
            count += 1
        ends.append(point)
        taken.append(count)
    return torch.cat(ends), taken


@pytest.mark.parametrize("patience", [0, 1, 2, 6])
@pytest.mark.parametrize("noise_std", [0.0, 0.001])
def test_images_stop_as_in_a_plain_loop(patience: int, noise_std: float) -> None:
    attack = EarlyStoppedPgd(steps=6, patience=patience, noise_std=noise_std)
    x_adv, report = attack.search(MODEL, X, Y, LINF, noise())
    expected, taken = plain_loop(patience, noise_std)
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    assert report["attack_steps"].item() == pytest.approx(sum(taken) / COUNT)


def test_images_stop_at_different_times() -> None:
    """The comparison above needs images that stop at different steps."""
    for patience in (0, 1):
        assert len(set(plain_loop(patience, 0.0)[1])) > 2


def test_an_image_that_stopped_fools_the_model_and_is_no_further_than_it_must() -> None:
    x_adv = EarlyStoppedPgd(steps=6, noise_std=0.0)(MODEL, X, Y, LINF, noise())
    _, taken = plain_loop(0, 0.0)
    has_stopped = torch.tensor(taken) < 6
    with torch.no_grad():
        assert (MODEL(x_adv).argmax(1) != Y)[has_stopped].all()
    begins = torch.tensor(taken) == 0
    assert begins.any()
    assert torch.equal(x_adv[begins], LINF.sample(X, noise())[begins])


def test_it_keeps_the_order_of_the_images() -> None:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    together = EarlyStoppedPgd(steps=4)(MODEL, X, Y, LINF, noise())
    shuffled = EarlyStoppedPgd(steps=4)(MODEL, X[order], Y[order], LINF, noise().rows(order))
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_with_patience_for_every_step_it_is_pgd(loss: Any) -> None:
    source = StreamNoise.on(torch.device("cpu"))
    found = EarlyStoppedPgd(steps=4, patience=4, noise_std=0.0, loss=loss)(MODEL, X, Y, LINF, source.reseed(0))
    expected = Pgd(steps=4, loss=loss)(MODEL, X, Y, LINF, source.reseed(0))
    assert torch.equal(found, expected)


def test_with_patience_for_every_step_it_is_pgd_at() -> None:
    patient = fat(patiences=(3,), after=(), steps=3, noise_std=0.0)
    assert same(train(patient, conv_net()), train(pgd_at(steps=3), conv_net()))


def test_patience_grows_with_the_stages() -> None:
    defense = fat()
    curriculum = defense.curriculum.start(conv_net())

    def patience(epoch: float) -> int:
        attack: Any = curriculum.attack(defense.attack, Progress(int(epoch * 4), 4, 120))
        return int(attack.patience)

    # The released code counts epochs from 1: 0 up to the 50th, 1 up to the 90th, 2 from then on.
    assert [patience(epoch) for epoch in (0, 49.75, 50, 89.75, 90, 119)] == [0, 0, 1, 1, 2, 2]


def test_patiences_and_stages_have_to_match() -> None:
    with pytest.raises(RobustCliError, match="has 2 entries and 'after' has 2"):
        fat(patiences=(0, 1), after=(1, 2))


def test_an_attack_without_patience_is_refused() -> None:
    with pytest.raises(RobustCliError, match="its patience changes during training, and Pgd has none"):
        train(replace(fat(), attack=Pgd()), conv_net(), updates=1)


def test_a_step_costs_its_attack_and_one_branch() -> None:
    """No more than PGD-AT, and no less where images stay in the batch."""
    model = conv_net().train()
    step = fat(steps=5).start(model, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(torch.device("cpu")))
    with no_early_exit(), counted(model) as passes:
        metrics = step(*labeled(), LINF, Progress(0, 4, 10))
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (6, 5, 5, 1)
    assert set(metrics) == {"loss", "attack_steps"}
    assert 0 <= metrics["attack_steps"] < 5
