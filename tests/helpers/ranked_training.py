"""Small trainings in float64 by the training loop, in one process or in several."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from small_training import loop_of
from torch import Tensor

from robustcli.cli.progress import Screen
from robustcli.contracts.build import build
from robustcli.contracts.defenses import network_for
from robustcli.contracts.networks import images, labels
from robustcli.data.datasets import Source
from robustcli.data.splits import Data, prepare
from robustcli.defenses import Defense
from robustcli.registry.catalog import catalog
from robustcli.runtime import ranks
from robustcli.specs.settings import Augment, TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.files import read_json
from robustcli.threat.noise import StreamNoise
from robustcli.training import loop
from robustcli.training.loop import Means, Training, fit
from robustcli.workflows.train import run_experiment

CPU = torch.device("cpu")
_BATCH = 6


@dataclass(frozen=True)
class Case:
    """A training.

    Args:
        defense: name and settings; parts are settings too.
        mixer: name and settings.
        images: in batches of 6; with 15 the last batch of an epoch has 3 of them, so slices are uneven.
    """

    defense: dict[str, Any] = field(default_factory=lambda: {"name": "pgd_at", "steps": 2})
    mixer: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    sync_batch_norm: bool = True
    epochs: int = 2
    images: int = 15


def trained(case: Case) -> dict[str, Tensor]:
    """Weights, statistics, averages and recorded means after 6 updates or more."""
    torch.manual_seed(0)
    defense: Defense = _built("defenses", case.defense)
    mixer = case.mixer
    settings = TrainSettings(
        epochs=case.epochs, batch_size=_BATCH, lr=0.02, device="cpu", sync_batch_norm=case.sync_batch_norm
    )
    network = network_for(defense, dtype=torch.float64)
    optimizer = torch.optim.SGD(
        [weight for weight in network.parameters() if weight.requires_grad], lr=settings.lr, momentum=0.9
    )
    optimizer.register_step_pre_hook(ranks.mean_gradients)
    noise = StreamNoise.on(CPU).reseed(0, "start")
    step = defense.start(network, optimizer, noise)
    training = Training(network, optimizer, step, defense.averaging.start(network), Means(CPU))
    member = catalog("mixers")[mixer["name"]]
    looping = loop_of(
        training,
        settings,
        noise=noise,
        augment=Augment(crop=1, flip=True, cutout=2),
        mixer=_built("mixers", mixer),
        replays=defense.replays,
        split_in_two=catalog("defenses")[case.defense["name"]].two_halves,
    )
    looping = replace(looping, data=_data(case.images), mixes_alone=member.mixes_alone)
    fit(training, looping)
    average = training.average.averaged(network, lambda: looping.data.clean_batches(_BATCH))
    measures = [
        value
        for record in looping.records
        for name, value in record.items()
        if isinstance(value, float) and name != "seconds"
    ]
    return {
        **{f"network {name}": value.double() for name, value in network.state_dict().items()},
        **{f"average {name}": value.double() for name, value in average.state_dict().items()},
        "measures": torch.tensor(measures, dtype=torch.float64),
    }


REWOUND = """\
name: rewound
data: {name: digits, train_size: 24}
architecture: {name: small_cnn, width: 4, hidden: 8}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 2, attack_bn: train, averaging: {name: ema}}
train: {epochs: 3, batch_size: 12, on_collapse: rewind, sync_batch_norm: true, check_examples: 20, device: cpu}
evaluate: {}
"""


def rewound(folder: str) -> dict[str, Any]:
    """The state of a run whose second check counts as a collapse."""
    with patch.object(loop, "has_collapsed", lambda record, _: record.epoch == 1):
        run = run_experiment(ExperimentSpec.parse(REWOUND, "the test"), Path(folder), Screen(is_quiet=True))
    last = ResumableCheckpoint.read(run.last)
    return {
        "status": read_json(run.results)["status"],
        "events": [record.event for record in run.records() if record.event is not None],
        "updates": last.training.updates,
        "weights": [float(value.double().norm()) for value in last.weights.values()],
    }


def _built(family: str, chosen: dict[str, Any]) -> Any:
    settings = dict(chosen)
    return build(catalog(family)[settings.pop("name")], settings)


@dataclass(frozen=True)
class _Doubles:
    """Images in float64, which no data set has."""

    labels: Tensor
    in_memory: bool = True

    def read(self, index: Tensor) -> Tensor:
        return images(len(self.labels), dtype=torch.float64)[index]


def _data(count: int) -> Data:
    split = _Doubles(labels(count))
    source = Source(split, split, [str(label) for label in range(10)], mean=(0.5,), std=(0.25,))
    return prepare(source, val_size=0, train_size=None, device=CPU, workers=0)
