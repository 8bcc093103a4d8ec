"""From a spec and its images to everything that training needs, before the first update."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from robustcli import checkpoint
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.build import build_network, start_from
from robustcli.data import Data, SplitName
from robustcli.defenses import Defense, SparesLabels
from robustcli.defenses.min_max import MinMax
from robustcli.diagnostics.one_step import monitors
from robustcli.errors import RobustCliError
from robustcli.evaluation.evidence import gather
from robustcli.evaluators import Evaluator
from robustcli.evaluators.attacked import Attacked
from robustcli.evaluators.clean import Clean
from robustcli.fields import exact_text
from robustcli.formats import to_channels_last
from robustcli.noise import IndexedNoise, StreamNoise, derive
from robustcli.precision import SkippedUpdates, tf32_in_use
from robustcli.registry import instantiate
from robustcli.runs import RunFolder
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat import ThreatModel
from robustcli.train import Loop, Means, Training, Watcher
from robustcli.training_model import TrainingModel, evaluating, is_channels_last, parameter_groups


def assemble(
    spec: ExperimentSpec,
    defense: Defense,
    data: Data,
    device: torch.device,
    folder: RunFolder,
    *,
    log: Callable[[dict[str, Any]], None],
    note: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    watcher: Watcher,
) -> tuple[Training, Loop, "Saver"]:
    """Everything that `fit` needs, before the first update; only checkpoints are written into the folder.

    Args:
        note: takes what this session decided or met with.

    Raises:
        RobustCliError: programs were asked for, and no batch would be one that they are made for; or some images have
            no label, and the defense needs them.
    """
    settings = spec.train
    if not data.is_labelled and not _spares_labels(defense):
        raise RobustCliError(
            f"data.extra: some images have no label (-1), and '{spec.defense.name}' with this attack needs them; write "
            "defense: trades with its own attack, or give data.extra.labels"
        )
    if settings.compile and data.sizes["train"] < settings.batch_size:
        raise RobustCliError(
            f"train.compile: programs are made for whole batches, and {data.sizes['train']} training images are less "
            f"than one of {settings.batch_size}; write train.batch_size: {data.sizes['train']} or compile: false"
        )
    torch.manual_seed(derive(spec.seed, "init"))
    network = build_network(spec.architecture, data.shape, data.mean, data.std).to(device)
    # A run that goes on has its own weights.
    if settings.start_from is not None and not folder.last.exists():
        start_from(network, Path(settings.start_from))
    is_last = is_channels_last(network, settings, device)
    note({"channels_last": is_last})
    if device.type == "cuda":
        note({"tf32": tf32_in_use()})
    if is_last:
        to_channels_last(network)
    optimizer, skipped = _optimizer(settings, network)
    # What a method draws when it starts, such as the weights of a network of its own, depends on the seed alone.
    noise = StreamNoise.on(device).reseed(spec.seed, "start")
    model = TrainingModel(network, settings, device, lambda text: note({"not_compiled": text}))
    step = defense.start(model, optimizer, noise)
    training = Training(network, optimizer, step, defense.averaging.start(network), Means(device))
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    saver = Saver(spec, data, training, folder)
    loop = Loop(
        data=data,
        threat=threat,
        settings=settings,
        augment=spec.data.options.augment,
        mixer=instantiate(spec.data.options.mixer),
        schedule=instantiate(settings.schedule),
        replays=defense.replays,
        halves=defense.halves,
        seed=spec.seed,
        noise=noise,
        check=Check(settings, defense, data, threat),
        save=saver.save,
        reload=lambda: saver.reload(folder.best),
        log=log,
        stop_requested=stop_requested,
        watcher=watcher,
        beside=lambda: skipped.metrics if skipped else {},
    )
    return training, loop, saver


def _spares_labels(defense: Defense) -> bool:
    """Whether a defense can go without some labels: its loss says so, and its attack raises a divergence alone."""
    if not isinstance(defense, MinMax) or not isinstance(defense.loss, SparesLabels):
        return False
    attack = defense.attack
    raises = LOSSES.get(getattr(attack, "loss", "ce"))
    return raises is not None and raises.rests_at_x and getattr(attack, "keep", "last") != "fooled"


def _optimizer(settings: TrainSettings, network: nn.Module) -> tuple[Optimizer, SkippedUpdates | None]:
    """The optimiser of a spec, which by itself clips gradients if that is asked for, and in fp16 looks for overflow."""
    groups = parameter_groups(network, settings.weight_decay, settings.weight_decay_exclude)
    optimizer: Optimizer = instantiate(settings.optimizer, groups, settings.lr)
    skipped = SkippedUpdates(optimizer) if settings.precision == "fp16" else None
    limit = settings.grad_clip
    if limit is not None:

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(network.parameters(), limit)

        optimizer.register_step_pre_hook(clip)
    return optimizer, skipped


@dataclass(frozen=True)
class Check:
    """Accuracy on the images that weights are chosen by, or on training images where nothing is chosen.

    Of methods that craft in one step also what announces that they overfit catastrophically.
    """

    settings: TrainSettings
    defense: Defense
    data: Data
    threat: ThreatModel

    @property
    def split(self) -> SplitName:
        if self.data.sizes["val"]:
            return "val"
        return "test" if self.settings.allow_test_selection else "train"

    @property
    def count(self) -> int:
        """How many images are checked."""
        return min(self.settings.check_examples, self.data.sizes[self.split])

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """What each accuracy is found by."""
        found: dict[str, Evaluator] = {"clean": Clean()}
        if self.defense.aims_at_robustness or self.settings.select == "robust":
            found["robust"] = Attacked(attack=Pgd(steps=self.settings.check_steps, keep="fooled"))
            found["fgsm"] = Attacked(attack=Fgsm())
        return found

    @property
    def watches_one_step(self) -> bool:
        """Whether it also looks for what announces catastrophic overfitting."""
        return self.defense.has_one_step and "robust" in self.evaluators

    def __call__(self, network: nn.Module) -> dict[str, Any]:
        x, y = self.data.evaluation(self.split, self.count)
        rng = IndexedNoise(0, torch.arange(self.count, device=x.device))
        with evaluating(network):
            found = {
                name: float(gather(evaluator, network, x, y, self.threat, rng).survives.double().mean())
                for name, evaluator in self.evaluators.items()
            }
            if self.watches_one_step:
                steps, batch_size = self.settings.check_steps, self.settings.batch_size
                found |= monitors(network, x, y, self.threat, rng, steps=steps, batch_size=batch_size)
        return {"checked_on": self.split, **found}


@dataclass
class Saver:
    """Writes checkpoints of a training and reads the last one back."""

    spec: ExperimentSpec
    data: Data
    training: Training
    folder: RunFolder

    def save(self, evaluated: nn.Module, is_best: bool, record: dict[str, Any]) -> None:
        shape = self.data.shape
        contents = {
            "spec": self.spec.to_yaml(),
            "shape": [shape.channels, shape.height, shape.width, shape.classes],
            "classes": list(self.data.classes),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "data_digest": self.data.digest,
            "threat": {"norm": self.spec.threat.norm, "eps": exact_text(self.spec.threat.eps)},
            "check": record,
            "weights": evaluated.state_dict(),
            "training": self.training.state_dict(),
        }
        # Best first: killed in between, the resumed run comes here again and writes the same best once more.
        if is_best:
            checkpoint.save(self.folder.best, contents)
            beside = self.folder.last.with_name("last.pt.writing")
            beside.unlink(missing_ok=True)
            os.link(self.folder.best, beside)
            beside.replace(self.folder.last)
        else:
            checkpoint.save(self.folder.last, contents)

    def reload(self, path: Path) -> None:
        contents = checkpoint.load(path)
        stored = ExperimentSpec.parse(contents["spec"], str(self.folder.last))
        if stored.digest != self.spec.digest or stored.seed != self.spec.seed:
            raise RobustCliError(
                f"{self.folder.last}: belongs to spec {stored.digest} with seed {stored.seed}, "
                f"not to {self.spec.digest} with seed {self.spec.seed}"
            )
        self.training.load_state_dict(contents["training"])
