"""A small network trained adversarially on digits, and the attacks of pyautoattack run on it one by one."""

from fractions import Fraction
from functools import cache

import torch
from pyautoattack import AutoAttack as Ensemble  # type: ignore[import-untyped]
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import drawn_from
from robustcli.data.datasets.digits import digits
from robustcli.registry.types import Norm
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel

# Between a third and two thirds of the correctly classified images survive.
EPS: dict[Norm, str] = {"linf": "0.15", "l2": "0.6", "l1": "1.5"}
_TRAIN = 1200
_PACKAGE_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@cache
def robust_network() -> tuple[nn.Module, Tensor, Tensor]:
    """The network and its correctly classified ones of 597 held-out images."""
    source = digits()
    x = torch.cat([source.test.images, source.train.images])
    y = torch.cat([source.test.labels, source.train.labels])
    with drawn_from(0):
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 16, 10),
        )
    _train(model, x[-_TRAIN:], y[-_TRAIN:])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x, y = x[:-_TRAIN], y[:-_TRAIN]
    is_right = model(x).argmax(1) == y
    return model.eval(), x[is_right], y[is_right]


def _train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    stream = StreamNoise.on(x.device)
    attack, threat = Pgd(steps=5), ThreatModel("linf", Fraction("0.15"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for epoch in range(20):
        for step, part in enumerate(torch.randperm(len(x), generator=order).split(64)):
            # Half of the radius at first: with the whole radius the network does not start to learn.
            eased = threat if epoch > 5 else threat.scaled(0.5)
            x_adv = attack(model, x[part], y[part], eased, stream.reseed(0, epoch, step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_adv), y[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def survivors_of_package(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int = 0,
    queries: int = 5000,
    steps: int = 100,
) -> Tensor:
    """Survivors of one attack of the package, with one restart, in batches of at most 250."""
    ensemble = Ensemble(
        model, norm=_PACKAGE_NORMS[threat.norm], eps=threat.radius, version="custom", attacks=[name], seed=seed
    )
    ensemble.fab.n_restarts, ensemble.fab.n_iter = 1, steps
    ensemble.square.n_queries = queries
    with drawn_from(0):
        x_adv, _ = ensemble.run_standard_evaluation(x, y, batch_size=250)
    with torch.no_grad():
        return model(x_adv).argmax(1) == y  # type: ignore[no-any-return]
