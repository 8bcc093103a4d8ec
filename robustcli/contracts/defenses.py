"""Contract of every defense."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.contracts.model_state import Failing, PlannedError, changes, found_again, snapshot
from robustcli.contracts.networks import branched_net, conv_net, drawn_from, gated_net, images, labels, search_net
from robustcli.data.targets import Labels
from robustcli.defenses import Defense, Metrics, Step
from robustcli.defenses.cifs import CifsLoss
from robustcli.defenses.dsara import SearchLoss
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.multibn import BranchesCrossEntropy
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.threat.noise import StreamNoise, derive
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(8, 255))
_COUNT = 8
STEPS_PER_EPOCH = 4


@dataclass
class Session:
    """A defense on a small model, driven like in the training loop."""

    model: nn.Module
    optimizer: Optimizer
    noise: StreamNoise
    step: Step
    updates: int = 0
    threat: ThreatModel = THREAT
    epochs: int = 10

    @classmethod
    def of(
        cls, defense: Defense, model: nn.Module | None = None, *, lr: float = 0.05, momentum: float = 0.0
    ) -> "Session":
        model = network_for(defense, dropout=0.1).train() if model is None else model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum)
        noise = StreamNoise.on(torch.device("cpu"))
        return cls(model, optimizer, noise, defense.start(model, optimizer, noise))

    def update(self, x: Tensor, y: Tensor, *smoothed: Tensor) -> Metrics:
        self.noise.reseed(0, "attack", self.updates)
        progress = Progress(self.updates, STEPS_PER_EPOCH, self.epochs)
        with drawn_from(derive(0, "network", self.updates)):
            metrics = self.step(x, Labels(y, *smoothed or (y,)), self.threat, progress)
        self.updates += 1
        return metrics


# Small networks with the parts that some defenses train, by the type of their loss.
_NETWORKS: dict[type, Callable[..., nn.Module]] = {
    BranchesCrossEntropy: lambda loss, **settings: branched_net(loss.branches, **settings),
    CifsLoss: lambda _, **settings: gated_net(**settings),
    SearchLoss: lambda _, **settings: search_net(**settings),
}


def network_for(defense: Defense, **settings: Any) -> nn.Module:
    """Return a small network with the parts that a defense trains."""
    trained = _trained(defense)
    make = _NETWORKS.get(type(trained))
    return conv_net(**settings) if make is None else make(trained, **settings)


def has_network(defense: Defense) -> bool:
    """Return whether there is a small network with the parts that a defense trains."""
    return type(_trained(defense)) in _NETWORKS


@contextmanager
def trained_on(defense: Defense, build: Callable[[], nn.Module]) -> Iterator[None]:
    """Check a defense on another network inside, for images of 1 x 8 x 8 pixels and 10 classes."""

    def make(_: Any, *, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
        with drawn_from(0):
            return build().to(dtype)

    kind = type(_trained(defense))
    _NETWORKS[kind] = make
    try:
        yield
    finally:
        del _NETWORKS[kind]


def _trained(defense: Defense) -> Any:
    return defense.loss if isinstance(defense, MinMax) else defense


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    return images(_COUNT, seed=10 + number), labels(_COUNT, seed=20 + number)


def lowers_its_loss(defense: Defense) -> None:
    session = Session.of(defense, network_for(defense).train(), lr=0.1)
    losses = [float(session.update(*batch())["loss"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0], f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g}"


def trains_every_parameter(defense: Defense) -> None:
    """Every trained weight moves; a frozen weight does not."""
    model = network_for(defense).train()
    held = next(model.parameters()).requires_grad_(False)
    session = Session.of(defense, model)
    before = snapshot(model)
    session.update(*batch())
    moved = {name.removeprefix("weight ") for name in changes(before, snapshot(model)) if name.startswith("weight ")}
    assert moved == {name for name, parameter in model.named_parameters() if parameter is not held}


def restores_modes(defense: Defense) -> None:
    """Modes and requires_grad do not change, with parts in eval mode, also after an error."""
    networks = [network_for(defense, dropout=0.1) for _ in range(4)]
    for model in (networks[0], *(Failing(network, at) for at, network in enumerate(networks[1:], 1))):
        model.train()
        # One batch norm in eval mode, as in fine-tuning.
        for module in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][:1]:
            module.eval()
        session = Session.of(defense, model)
        with found_again(model, except_for=("weight", "buffer", "grad")):
            session.update(*batch())


def keeps_weights_when_it_fails(defense: Defense) -> None:
    """A step that fails does not move the weights."""
    for at in (1, 2, 3):
        session = Session.of(defense, Failing(network_for(defense), at).train())
        before = snapshot(session.model)
        try:
            session.update(*batch())
        except PlannedError:
            moved = [name for name in changes(before, snapshot(session.model)) if name.startswith("weight")]
            assert not moved, f"failed, and left changed: {moved}"


def updates_once_per_step(defense: Defense) -> None:
    session = Session.of(defense)
    calls: list[None] = []
    session.optimizer.register_step_post_hook(lambda *_: calls.append(None))
    for number in range(3):
        session.update(*batch(number))
    assert len(calls) == 3


def ignores_earlier_gradients(defense: Defense) -> None:
    """Existing gradients do not affect a step."""
    clean, littered = Session.of(defense), Session.of(defense)
    for parameter in littered.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    for session in (clean, littered):
        session.update(*batch())
    assert _same(clean, littered)


def reports_scalars(defense: Defense) -> None:
    metrics = Session.of(defense).update(*batch())
    assert "loss" in metrics
    for value in metrics.values():
        assert isinstance(value, Tensor)
        assert value.shape == ()
        assert not value.requires_grad
        assert torch.isfinite(value)


def repeats_itself(defense: Defense) -> None:
    sessions = [Session.of(defense), Session.of(defense)]
    for session in sessions:
        for number in range(3):
            session.update(*batch(number))
    assert _same(*sessions), "equal seeds, other weights"


def continues_from_its_state(defense: Defense) -> None:
    """Two steps, a checkpoint and two more steps give the same as four steps."""
    straight, first = Session.of(defense, momentum=0.9), Session.of(defense, momentum=0.9)
    for number in range(2):
        straight.update(*batch(number))
        first.update(*batch(number))
    saved = through_a_file([part.state_dict() for part in (first.model, first.optimizer, first.step)])
    resumed = Session.of(defense, momentum=0.9)
    resumed.updates = first.updates
    parts: tuple[Any, ...] = (resumed.model, resumed.optimizer, resumed.step)
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    for number in (2, 3):
        straight.update(*batch(number))
        resumed.update(*batch(number))
    assert _same(straight, resumed)


def treats_class_shares_as_labels(defense: Defense) -> None:
    """One-hot class shares (n, k) mean the same as labels (n,)."""
    by_label, by_share = (Session.of(defense, network_for(defense, dtype=torch.float64).train()) for _ in range(2))
    x, y = batch()
    x = x.double()
    by_label.update(x, y)
    by_share.update(x, nn.functional.one_hot(y, 10).double())
    for one, other in zip(by_label.model.parameters(), by_share.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def smooths_only_its_loss(defense: Defense) -> None:
    """Smoothed labels change the loss, but not the adversarial images."""
    x, y = batch()
    sharp, smooth = Session.of(defense), Session.of(defense)
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for session, shown in zip((sharp, smooth), seen, strict=True):
        session.model.register_forward_pre_hook(lambda _, inputs, shown=shown: shown.append(inputs[0].detach().clone()))
    loss, other = sharp.update(x, y)["loss"], smooth.update(x, y, 0.7 * nn.functional.one_hot(y, 10) + 0.03)["loss"]
    assert not torch.equal(loss, other), "the loss ignores smoothed labels"
    assert len(seen[0]) == len(seen[1])
    assert all(torch.equal(one, another) for one, another in zip(*seen, strict=True)), "the attack uses smoothed labels"


def has_the_attributes_of_a_defense(defense: Defense) -> None:
    assert isinstance(defense.is_adversarial, bool)
    assert isinstance(defense.is_single_step, bool)
    assert callable(defense.averaging.start)
    assert isinstance(defense.replays, int)
    assert defense.replays >= 1


def observed(defense: Defense, epochs: Sequence[int] = (0, 10, 60, 100)) -> Tensor:
    """Weights and batch statistics after some steps under a strong attack, as one row of numbers.

    Some methods change with the epoch, so a few epochs of a long training are sampled.
    """
    session = Session.of(defense)
    session.threat, session.epochs = ThreatModel("linf", Fraction(1, 5)), 120
    for epoch in epochs:
        session.updates = epoch * STEPS_PER_EPOCH
        for number in range(2 * defense.replays):
            session.update(*batch(number // defense.replays))
    x, y = batch()
    with suppress(RobustCliError):  # Some defenses reject class shares.
        session.update(x, nn.functional.one_hot(y, 10).float())
    return torch.cat([tensor.flatten().double() for tensor in session.model.state_dict().values()])


def through_a_file(state: Any) -> Any:
    """Save and load a state like a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _same(one: Session, other: Session) -> bool:
    return not [
        name for name in changes(snapshot(one.model), snapshot(other.model)) if name.startswith(("weight", "buffer"))
    ]
