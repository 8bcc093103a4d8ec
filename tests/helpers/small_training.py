"""A training loop on twenty random images, with steps and checks that tests can plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.contracts.networks import conv_net, images, labels
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.mixers import Mixer
from robustcli.data.mixers.none import Unmixed
from robustcli.data.splits import Data, prepare
from robustcli.data.targets import Labels
from robustcli.defenses import Defense, Metrics
from robustcli.evaluation.watcher import Watcher
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.schedules import Schedule
from robustcli.optimization.schedules.steps import Constant
from robustcli.specs.settings import Augment, TrainSettings
from robustcli.store.records import CheckRecord
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.loop import Loop, Means, Training
from robustcli.training.model import TrainingModel, parameter_groups

COUNT = 20
CPU = torch.device("cpu")
THREAT = ThreatModel("linf", Fraction(8, 255))


def small_data() -> Data:
    split = TensorSplit(images(COUNT), labels(COUNT))
    source = Source(split, split, [str(label) for label in range(10)], mean=(0.5,), std=(0.25,))
    return prepare(source, val_size=0, train_size=None, device=CPU, workers=0)


@dataclass
class Recorder:
    """A step that trains nothing: it records its inputs and returns planned losses.

    Args:
        losses: of the updates in order; 1 after the last.
    """

    losses: Sequence[float] = ()
    optimizer: Optimizer | None = None
    rates: list[float] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)
    threats: list[ThreatModel] = field(default_factory=list)
    progresses: list[Progress] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        assert self.optimizer is not None
        group = self.optimizer.param_groups[0]
        self.rates.append(group["lr"])
        self.momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
        self.threats.append(threat)
        self.progresses.append(progress)
        self.sizes.append(len(x))
        update = len(self.progresses) - 1
        return {"loss": torch.tensor(self.losses[update] if update < len(self.losses) else 1.0)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def training_of(
    settings: TrainSettings,
    step: Recorder | Defense,
    *,
    network: nn.Module | None = None,
    averaging: Averaging | None = None,
    noise: StreamNoise | None = None,
) -> Training:
    """A training of a recorder or of a real defense."""
    network = conv_net() if network is None else network
    groups = parameter_groups(network, settings.weight_decay, settings.weight_decay_exclude)
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    average = (averaging or LastWeights()).start(network)
    if isinstance(step, Recorder):
        step.optimizer = optimizer
        return Training(network, optimizer, step, average, Means(CPU))
    assert noise is not None
    model = TrainingModel(network, settings, CPU)
    return Training(network, optimizer, step.start(model, optimizer, noise), average, Means(CPU))


@dataclass(frozen=True)
class RecordedLoop(Loop):
    """A loop that records what it logs and saves.

    Args:
        log_lines: everything logged, in order, as in the file.
        saved: (updates, whether it is the best, its check) of every checkpoint.
        reloads: updates at which a checkpoint was restored.
    """

    log_lines: list[dict[str, Any]]
    saved: list[tuple[int, bool, CheckRecord]]
    reloads: list[int]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Those of epochs."""
        return [line for line in self.log_lines if "event" not in line]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [line for line in self.log_lines if "event" in line]


def loop_of(
    training: Training,
    settings: TrainSettings,
    *,
    schedule: Schedule | None = None,
    checks: Sequence[dict[str, float]] = (),
    noise: StreamNoise | None = None,
    augment: Augment | None = None,
    mixer: Mixer | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    seed: int = 0,
    replays: int = 1,
    split_in_two: bool = False,
    watches_collapse: bool = True,
) -> RecordedLoop:
    """A loop whose epoch checks return planned results."""
    planned = iter(checks)
    saved: list[tuple[int, bool, CheckRecord]] = []
    reloads: list[int] = []
    log_lines: list[dict[str, Any]] = []
    return RecordedLoop(
        data=small_data(),
        threat=THREAT,
        settings=settings,
        augment=augment or Augment(),
        mixer=mixer or Unmixed(),
        mixes_alone=False,
        schedule=schedule or Constant(),
        replays=replays,
        split_in_two=split_in_two,
        watches_collapse=watches_collapse,
        seed=seed,
        noise=noise or StreamNoise.on(CPU),
        check=lambda network: CheckRecord.model_validate(next(planned, {"clean": 0.5})),
        save=lambda network, is_best, record: saved.append((training.updates, is_best, record)),
        reload=lambda: reloads.append(training.updates),
        log=lambda record: log_lines.append(record.to_json()),
        stop_requested=stop_requested,
        watcher=Watcher(),
        more_metrics=dict,
        log_lines=log_lines,
        saved=saved,
        reloads=reloads,
    )
