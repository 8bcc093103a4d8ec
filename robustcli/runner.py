"""The story of one run: spec -> components -> fit -> evaluate -> store."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from robustcli import checkpoint
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.pgd import Pgd
from robustcli.build import build_network, choose_device, describe_device, load_data, network_of, start_from
from robustcli.data import Data, SplitName
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.evaluation.dossier import Dossier, evaluate_into
from robustcli.evaluation.evidence import gather
from robustcli.evaluators import Evaluator
from robustcli.evaluators.attacked import Attacked
from robustcli.evaluators.clean import Clean
from robustcli.fields import exact_text
from robustcli.formats import to_channels_last
from robustcli.memory import keep_freed_memory
from robustcli.noise import IndexedNoise, StreamNoise, derive
from robustcli.registry import instantiate
from robustcli.runs import Run, RunFolder, read_json
from robustcli.signals import StopRequest, stop_requests
from robustcli.specs.check import to_plain
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat import ThreatModel
from robustcli.train import Loop, Means, Training, Watcher, fit
from robustcli.training_model import TrainingModel, evaluating, parameter_groups

SELECTED_ON_TEST = "the weights were selected on test images, which flatters this number"


class EvaluationWatcher(Watcher, Protocol):
    """Who is also shown the evaluations."""

    def evaluation(self, key: str, result: Mapping[str, Any] | None) -> None:
        """An evaluation begins (result None) or is done."""
        ...


def run_experiment(spec: ExperimentSpec, root: Path, watcher: EvaluationWatcher, *, resume: bool = False) -> RunFolder:
    """Train, evaluate and store; what is already done is not done again.

    Raises:
        Interrupted: a signal asked to stop; everything done so far is kept.
        RobustCliError: something a user can mend.
    """
    device = choose_device(spec.train.device)
    defense: Defense = instantiate(spec.defense)
    evaluators = {key: instantiate(chosen) for key, chosen in spec.evaluate.items()}
    run = Run.open(root, spec, resume=resume)
    try:
        if run.folder.is_finished:
            return run.folder
        with stop_requests() as stop:
            data = load_data(spec.data, device, to_train=True)
            keep_freed_memory()  # From here on: what reading the images took goes back.
            for key, chosen in spec.evaluate.items():
                count = chosen.options.examples
                if count is not None and count > data.sizes["test"]:
                    raise RobustCliError(
                        f"evaluate.{key}.examples: {count} test images were asked for; there are {data.sizes['test']}"
                    )
            extra = {"extra_digest": data.extra_digest} if data.extra_digest else {}
            described = {"digest": data.digest, "sizes": data.sizes, "decode": data.decode, **extra}
            run.begin(describe_device(device), described)
            _train(spec, defense, data, device, run, watcher, stop)
            best = checkpoint.load(run.folder.best)
            _, network = network_of(best, device)
            _evaluate(spec, evaluators, data, network, run, watcher, held_out_accuracy(best["check"]))
            _finish(spec, data, run)
        return run.folder
    finally:
        run.close()


def _train(
    spec: ExperimentSpec,
    defense: Defense,
    data: Data,
    device: torch.device,
    run: Run,
    watcher: Watcher,
    stop: StopRequest,
) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    settings = spec.train
    torch.manual_seed(derive(spec.seed, "init"))
    network = build_network(spec.architecture, data.shape, data.mean, data.std).to(device)
    # A run that goes on has its own weights.
    if settings.start_from is not None and not run.folder.last.exists():
        start_from(network, Path(settings.start_from))
    if settings.channels_last:
        to_channels_last(network)
    optimizer = _optimizer(settings, network)
    # What a method draws when it starts, such as the weights of a network of its own, depends on the seed alone.
    noise = StreamNoise.on(device).reseed(spec.seed, "start")
    step = defense.start(TrainingModel(network, settings, device), optimizer, noise)
    training = Training(network, optimizer, step, defense.averaging.start(network), Means(device))
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    saver = _Saver(spec, data, training, run.folder)
    loop = Loop(
        data=data,
        threat=threat,
        settings=settings,
        augment=spec.data.options.augment,
        mixer=instantiate(spec.data.options.mixer),
        schedule=instantiate(settings.schedule),
        replays=defense.replays,
        seed=spec.seed,
        noise=noise,
        check=_Check(settings, defense, data, threat),
        save=saver.save,
        reload=lambda: saver.reload(run.folder.best),
        log=run.log,
        stop_requested=lambda: stop.is_made,
        watcher=watcher,
    )
    with stop.held():
        if run.folder.last.exists():
            saver.reload(run.folder.last)
            if not training.is_over:
                run.keep_records(training.updates // loop.steps_per_epoch)
        else:
            run.keep_records(0)
            saver.save(network, True, {})
        fit(training, loop)


def _optimizer(settings: TrainSettings, network: nn.Module) -> Optimizer:
    """The optimiser of a spec, which clips gradients by itself if that is asked for."""
    groups = parameter_groups(network, settings.weight_decay, settings.weight_decay_exclude)
    optimizer: Optimizer = instantiate(settings.optimizer, groups, settings.lr)
    limit = settings.grad_clip
    if limit is not None:

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(network.parameters(), limit)

        optimizer.register_step_pre_hook(clip)
    return optimizer


@dataclass(frozen=True)
class _Check:
    """Accuracy on the images that weights are chosen by, or on training images where nothing is chosen."""

    settings: TrainSettings
    defense: Defense
    data: Data
    threat: ThreatModel

    @property
    def split(self) -> SplitName:
        if self.data.sizes["val"]:
            return "val"
        return "test" if self.settings.allow_test_selection else "train"

    def __call__(self, network: nn.Module) -> dict[str, Any]:
        count = min(self.settings.check_examples, self.data.sizes[self.split])
        x, y = self.data.evaluation(self.split, count)
        evaluators: dict[str, Evaluator] = {"clean": Clean()}
        if self.defense.aims_at_robustness or self.settings.select == "robust":
            evaluators["robust"] = Attacked(attack=Pgd(steps=self.settings.check_steps, keep="fooled"))
            evaluators["fgsm"] = Attacked(attack=Fgsm())
        rng = IndexedNoise(0, torch.arange(count, device=x.device))
        with evaluating(network):
            accuracies = {
                name: float(gather(evaluator, network, x, y, self.threat, rng).survives.double().mean())
                for name, evaluator in evaluators.items()
            }
        return {"checked_on": self.split, **accuracies}


@dataclass
class _Saver:
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


def held_out_accuracy(record: Mapping[str, Any]) -> float | None:
    """Clean accuracy in the check that a checkpoint keeps, unless it was of images that were trained on."""
    return record["clean"] if record.get("checked_on") in ("val", "test") else None


def _evaluate(
    spec: ExperimentSpec,
    evaluators: Mapping[str, Any],
    data: Data,
    network: nn.Module,
    run: Run,
    watcher: EvaluationWatcher,
    expected_clean: float | None,
) -> None:
    """Every evaluation that is not stored yet."""
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    stamps = [SELECTED_ON_TEST] if spec.train.allow_test_selection else []
    for key, chosen in spec.evaluate.items():
        dossier = Dossier(run.folder.evaluation(key).parent, key)
        if not dossier.result.exists():
            watcher.evaluation(key, None)
        result = evaluate_into(
            dossier,
            chosen,
            evaluators[key],
            data,
            network,
            threat,
            spec.seed,
            stamps=stamps,
            expected_clean=expected_clean,
        )
        watcher.evaluation(key, result)


def _finish(spec: ExperimentSpec, data: Data, run: Run) -> None:
    contents = checkpoint.load(run.folder.best)
    training = checkpoint.load(run.folder.last)["training"]
    status = "finished"
    if training["collapsed_at"] is not None:
        status = "rewound" if training["is_over"] else "collapsed"
    images = "val" if data.sizes["val"] else "test" if spec.train.allow_test_selection else None
    run.finish(
        {
            "status": status,
            "name": spec.name,
            "seed": spec.seed,
            "spec_digest": spec.digest,
            "threat": {"norm": spec.threat.norm, "eps": exact_text(spec.threat.eps)},
            "data": read_json(run.folder.provenance)["data"],
            "selection": {"by": spec.train.select, "images": images if spec.train.select != "last" else None},
            "epoch": contents["check"].get("epoch"),
            "collapsed_at": training["collapsed_at"],
            "evaluations": {key: read_json(run.folder.evaluation(key)) for key in spec.evaluate},
            "claim": to_plain(spec.claim) if spec.claim else None,
        }
    )
