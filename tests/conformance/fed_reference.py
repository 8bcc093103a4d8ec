"""The package's APGD with our noise: every image gets the same random numbers in every run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyautoattack import autopgd_base
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from robustcli.attacks.apgd import Apgd
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


class _FedTorch:
    """The module torch with the package's three functions for random numbers replaced."""

    def __init__(self, noise: IndexedNoise) -> None:
        self.noise = noise
        self.drawn = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def rand(self, shape: torch.Size) -> Tensor:
        return self._once("uniform", torch.empty(shape))

    def randn(self, shape: torch.Size) -> Tensor:
        return self._once("normal", torch.empty(shape))

    def randn_like(self, x: Tensor) -> Tensor:
        return self._once("normal", x)

    def _once(self, kind: str, like: Tensor) -> Tensor:
        # With shrinking balls the package draws again for every ball and discards the numbers.
        self.drawn += 1
        drawn: Tensor = getattr(self.noise, kind)(like) if self.drawn == 1 else torch.zeros_like(like)
        return drawn


def fed(base: type[APGDAttack], images: Tensor, rng: IndexedNoise) -> type[APGDAttack]:
    """The package's class, whose nth run draws the numbers of our run n."""

    class Fed(base):  # type: ignore[misc, valid-type]
        runs = 0
        is_in_schedule = False

        def attack_single_run(self, x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Any:
            if self.is_in_schedule:
                return super().attack_single_run(x, y, x_init)
            with self._feeding(x):
                return super().attack_single_run(x, y, x_init)

        def decr_eps_pgd(self, *args: Any, **settings: Any) -> Any:
            self.is_in_schedule = True
            with self._feeding(args[0]):
                return super().decr_eps_pgd(*args, **settings)

        @contextmanager
        def _feeding(self, x: Tensor) -> Iterator[None]:
            # Images still attacked are recognized by their pixels.
            is_same = (x.flatten(1)[:, None] == images.flatten(1)[None]).all(2)
            assert (is_same.sum(1) == 1).all(), "two equal images"
            noise = rng.split(f"run {self.runs}").rows(is_same.int().argmax(1))
            self.runs += 1
            autopgd_base.torch = _FedTorch(noise)
            try:
                yield
            finally:
                autopgd_base.torch = torch
                self.is_in_schedule = False

    return Fed


def fed_survivors(
    attack: Apgd, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
) -> Tensor:
    """Survivors of the package's APGD with our settings and our noise: bool (n,)."""
    return _survivors(attack, model, x, y, threat, 0, fed(APGDAttack, x, rng), fed(APGDAttack_targeted, x, rng))


def own_survivors(attack: Apgd, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
    """Survivors of the package's APGD with our settings and its own noise: bool (n,)."""
    return _survivors(attack, model, x, y, threat, seed, APGDAttack, APGDAttack_targeted)


def _survivors(
    attack: Apgd,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    seed: int,
    untargeted: type[APGDAttack],
    targeted: type[APGDAttack_targeted],
) -> Tensor:
    settings: dict[str, Any] = {
        "n_iter": attack.steps,
        "norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm],
        "n_restarts": attack.restarts,
        "eps": threat.radius,
        "eot_iter": attack.gradients,
        "seed": seed,
        "device": "cpu",
        "use_largereps": attack.radius == "shrinking",
    }
    if attack.loss == "targeted_dlr":
        reference = targeted(model, n_target_classes=attack.targets, **settings)
    else:
        reference = untargeted(model, loss=attack.loss, **settings)
    with torch.random.fork_rng(devices=[]):
        x_adv = reference.perturb(x, y)
    with torch.no_grad():
        return torch.as_tensor(model(x_adv).argmax(1) == y)
