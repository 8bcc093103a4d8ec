"""PGD's registered forms: the mean of many gradients, and the inner attack of TRADES."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from judging import noise
from torch import Tensor, nn

from robustcli.attacks import pgd
from robustcli.attacks.ascent import Look, Repeats
from robustcli.attacks.gradient import input_gradient, mean_input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd, eot_pgd, tpgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.evaluation.passes import count_passes
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(3, 100))


class Shaken(nn.Module):
    """A network whose logits have random slopes added: sum over the pixels of x times fresh normal numbers."""

    def __init__(self, network: nn.Module, strength: float) -> None:
        super().__init__()
        self.network, self.strength = network, strength
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        slopes = torch.randn((x[0].numel(), logits.shape[1]), generator=self.generator, dtype=x.dtype)
        return logits + self.strength * x.flatten(1) @ slopes


def setting() -> tuple[nn.Module, Tensor, Tensor]:
    return conv_net(3, dtype=torch.float64).eval(), images(8, 3, dtype=torch.float64), labels(8)


@pytest.mark.parametrize("keep", ["last", "best", "fooled"])
def test_more_gradients_of_a_model_without_noise_change_only_the_cost(keep: Any) -> None:
    model, x, y = setting()
    with torch.no_grad():
        y = model(x).argmax(1)
    small = ThreatModel("linf", Fraction(1, 10**5))
    found, costs = [], []
    for gradients in (1, 4):
        with count_passes(model) as passes:
            found.append(Pgd(steps=3, gradients=gradients, keep=keep)(model, x, y, small, noise(8)))
        costs.append((passes.forwards, passes.gradients))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-12)
    looks = 3 if keep == "last" else 4
    assert costs == [(8 * looks, 8 * 3), (8 * 4 * looks, 8 * 12)]


class TestRepeats:
    """Images whose points only repeat leave the batch."""

    def run(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, leaves: bool) -> tuple[Tensor, int]:
        x = images(24, 3, dtype=torch.float64)
        with torch.no_grad():
            y = model(x).argmax(1)
        if not leaves:
            monkeypatch.setattr(pgd, "Repeats", lambda *_: lambda look: torch.zeros(len(look.points), dtype=torch.bool))
        with count_passes(model) as passes:
            # Some images are fooled at once, some late and some never.
            points = Pgd(steps=60, restarts=2, keep="fooled")(
                model, x, y, ThreatModel("linf", Fraction(1, 100)), noise(24)
            )
        with torch.no_grad():
            survivors = int((model(points).argmax(1) == y).sum())
        assert 0 < survivors < 24
        return points, passes.forwards

    def test_points_are_the_same_and_cost_less(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = conv_net(3, dtype=torch.float64).eval()
        found, less = self.run(model, monkeypatch, leaves=True)
        expected, all_of_them = self.run(model, monkeypatch, leaves=False)
        assert torch.equal(found, expected)
        assert less < 0.7 * all_of_them

    def test_a_network_that_draws_noise_is_attacked_to_the_last_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        costs = [
            self.run(Shaken(conv_net(3, dtype=torch.float64).eval(), 1e-9), monkeypatch, leaves=leaves)[1]
            for leaves in (True, False)
        ]
        assert costs[0] == costs[1]

    def test_cycles_of_any_length_are_seen(self) -> None:
        """Per image: always new, always the same, cycles of two and three, and one with other logits."""
        x = images(5)
        repeats, seen, rows = Repeats(x, 5), [], torch.arange(5)
        for step in range(5):
            at = torch.tensor([step, 0, step % 2, step % 3, 0])
            logits = torch.stack([at, at, at + torch.tensor([0, 0, 0, 0, step])], 1)[:, None].float()
            points = x + at[:, None, None, None]
            seen.append(repeats(Look(step, rows, points, points, logits[:, 0, 0], logits)).tolist())
        assert list(zip(*seen, strict=True)) == [
            (False,) * 5,
            (False,) + 4 * (True,),
            (False,) * 2 + 3 * (True,),
            (False,) * 3 + 2 * (True,),
            (False,) * 5,
        ]


def test_direction_and_score_are_means_and_the_logits_those_of_all_passes() -> None:
    model, x, y = setting()
    loss = LOSSES["ce"]
    one_by_one = Shaken(model, 0.2)
    passes = [input_gradient(one_by_one, x, loss, y) for _ in range(5)]
    grad, scores, logits = mean_input_gradient(Shaken(model, 0.2), x, loss, y, 5)
    assert torch.allclose(grad, torch.stack([each[0] for each in passes]).mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(scores, torch.stack([each[1] for each in passes]).mean(0), rtol=0, atol=1e-12)
    assert torch.equal(logits, torch.stack([each[2] for each in passes], 1))
    assert not torch.equal(passes[0][1], passes[1][1]), "the model draws nothing"


def test_a_mean_of_gradients_sees_through_noise() -> None:
    """With much noise, only the mean of many gradients raises the loss of the noise-free network."""
    model, x, y = setting()
    rises = []
    with torch.no_grad():
        clean = nn.functional.cross_entropy(model(x), y)
        for gradients in (1, 64):
            attack = eot_pgd(steps=4, gradients=gradients, keep="last")
            x_adv = attack(Shaken(model, 0.02), x, y, THREAT, noise(8))
            rises.append(float(nn.functional.cross_entropy(model(x_adv), y) - clean))
        best = Pgd(steps=4)(model, x, y, THREAT, noise(8))
        most = float(nn.functional.cross_entropy(model(best), y) - clean)
    assert rises[1] > 0.5 * most
    assert rises[1] > 2 * rises[0]


def test_forms_are_pgd_with_these_settings() -> None:
    assert eot_pgd() == Pgd(steps=20, gradients=10, keep="fooled")
    assert tpgd() == Pgd(steps=10, start="gaussian", start_std=0.001, loss="kl")


def test_tpgd_uses_no_label() -> None:
    model, x, y = setting()
    found = [tpgd()(model, x, targets, THREAT, noise(8)) for targets in (y, (y + 1) % 10)]
    assert torch.equal(found[0], found[1])
    loss = LOSSES["kl"]
    reference = loss.refer(model, x, y)
    with torch.no_grad():
        by_chance = loss.score(model(THREAT.sample(x, noise(8))), reference)
        assert (loss.score(model(found[0]), reference) > 5 * by_chance).all()
