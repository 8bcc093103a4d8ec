"""Build everything that training needs from a spec and its images."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from robustcli.data.augmentation import require_room
from robustcli.data.splits import Data
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.evaluation.watcher import Watcher
from robustcli.models.build import build_network
from robustcli.models.start import start_from
from robustcli.optimization.clipping import clip_gradients
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import instantiate
from robustcli.registry.types import Precision
from robustcli.runtime import ranks
from robustcli.runtime.memory_format import to_channels_last
from robustcli.runtime.precision import SkippedUpdates, emulation, tf32_in_use
from robustcli.specs.data_guards import unused_monitoring
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.records import Record
from robustcli.store.runs import RunFolder
from robustcli.threat.noise import StreamNoise, derive
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.training.choices import chosen_settings
from robustcli.training.loop import Loop, Means, Training
from robustcli.training.model import TrainingModel, is_channels_last, parameter_groups, precision_of
from robustcli.training.rehearsal import rehearse_smallest_batch
from robustcli.training.saver import Saver


def assemble(
    spec: ExperimentSpec,
    defense: Defense,
    data: Data,
    device: torch.device,
    folder: RunFolder,
    *,
    log: Callable[[Record], None],
    note: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    watcher: Watcher,
) -> tuple[Training, Loop, "Saver"]:
    """Build everything that `fit` needs; only checkpoints are written into the folder.

    Args:
        note: stores decisions and events of this session.

    Raises:
        RobustCliError: images are too small for the padding of crops; no batch is large enough to be compiled; some
            images have no label, and the defense needs labels; or the smallest batch is too small for the network's
            batch norms.
    """
    settings = chosen_settings(spec, defense, data, device, folder)
    _require_suitable_images(spec, defense, settings, data)
    network = _network(spec, settings, data, device, folder)
    is_last = is_channels_last(network, settings, device)
    chosen = {"precision": settings.precision, "channels_last": is_last, "compile": settings.compile}
    note(chosen)
    _note_arithmetic(spec, precision_of(settings, device), device, note)
    if is_last:
        to_channels_last(network)
    halves = spec.defense.member.two_halves
    optimizer, skipped = _optimizer(settings, network)
    threat = ThreatModel(spec.threat.norm, spec.threat.eps)
    rehearse_smallest_batch(defense, network, optimizer, data, settings, threat, split_in_two=halves)
    # Random draws at the start of a method, such as weights of a second network, depend only on the seed.
    noise = StreamNoise.on(device).reseed(spec.seed, "start")
    model = TrainingModel(network, settings, device, lambda text: note({"not_compiled": text}))
    step = defense.start(model, optimizer, noise)
    training = Training(network, optimizer, step, defense.averaging.start(network), Means(device))
    saver = Saver(spec, data, training, folder)
    loop = Loop(
        data=data,
        threat=threat,
        settings=settings,
        augment=spec.data.options.augment,
        mixer=instantiate(spec.data.options.mixer),
        mixes_alone=spec.data.options.mixer.member.mixes_alone,
        schedule=instantiate(settings.schedule),
        replays=defense.replays,
        split_in_two=halves,
        watches_collapse=defense.is_adversarial,
        seed=spec.seed,
        noise=noise,
        check=Check(settings, defense, data, threat),
        save=saver.save,
        reload=lambda: saver.reload(folder.best),
        log=log,
        stop_requested=stop_requested,
        watcher=watcher,
        more_metrics=lambda: skipped.metrics if skipped else {},
    )
    # Last, so that an error is not preceded by a description of what is not run.
    watcher.settings(_in_words(spec.train, chosen))
    return training, loop, saver


def _require_suitable_images(spec: ExperimentSpec, defense: Defense, settings: TrainSettings, data: Data) -> None:
    """Raise for images that the defense, compilation, cropping or several processes cannot use."""
    if not data.is_labeled and (defense.needs_labels or not spec.defense.member.spares_labels):
        sparing = " or ".join(name for name, member in catalog("defenses").items() if member.spares_labels)
        raise RobustCliError(
            f"data.extra: some images have no label (-1), and '{spec.defense.name}' with this attack needs them; write "
            f"defense: {sparing} with its own attack, or give data.extra.labels"
        )
    if settings.compile and data.sizes.train < settings.batch_size:
        raise RobustCliError(
            f"train.compile: programs are made for whole batches, and {data.sizes.train} training images are less "
            f"than one of {settings.batch_size}; write train.batch_size: {data.sizes.train} or compile: false"
        )
    options = spec.data.options
    if options.is_smoothed and options.smoothing_over == "others" and data.shape.classes == 1:
        raise RobustCliError("data.smoothing_over: 'others', but the images have one class; expected two or more")
    batches = data.steps_per_epoch(settings.batch_size, settings.drop_last)
    unused = unused_monitoring(spec.defense, batches, settings.batch_size)
    if unused is not None:
        raise RobustCliError(f"defense.monitor_images: {unused}")
    require_room(spec.data.options.augment, data.shape.height, data.shape.width)
    _refuse_compiled_synchronization(settings)
    _refuse_empty_slices(data, settings, 2 if spec.defense.member.two_halves else 1)


def _network(
    spec: ExperimentSpec, settings: TrainSettings, data: Data, device: torch.device, folder: RunFolder
) -> nn.Module:
    """Return the network with its first weights: those of the seed, or of another network."""
    torch.manual_seed(derive(spec.seed, "init"))
    network = build_network(spec.architecture, data.shape, data.mean, data.std).to(device)
    # A resumed run has its own weights.
    if settings.start_from is not None and not folder.last.exists():
        start_from(network, settings.start_from, spec.architecture, data.shape)
    return network


def _note_arithmetic(
    spec: ExperimentSpec, precision: Precision, device: torch.device, note: Callable[[dict[str, Any]], None]
) -> None:
    """Store how the device computes, and warn if it has no instructions for the precision."""
    instead = f"train.precision: {'fp32' if device.type == 'cpu' else 'fp16'}"
    if spec.train.precision == "auto":
        instead += " and begin in another --runs folder: a run keeps its precision"
    slow = emulation(f"train.precision: {precision}", precision, device, instead)
    if slow is not None:
        warnings.warn(slow, stacklevel=3)
        note({"emulated": slow})
    if device.type == "cuda":
        note({"tf32": tf32_in_use()})


def _in_words(asked: TrainSettings, chosen: dict[str, Any]) -> str:
    """Describe how passes are computed, and which settings the machine decided."""
    parts = (
        f"{key} {str(value).lower()}{' (auto)' * (getattr(asked, key) == 'auto')}" for key, value in chosen.items()
    )
    return f"passes: {', '.join(parts)}"


def _refuse_compiled_synchronization(settings: TrainSettings) -> None:
    if settings.compile and settings.sync_batch_norm and ranks.world() > 1:
        raise RobustCliError(
            "train.compile: batch norms of compiled passes are not synchronized; write compile: false, or "
            "sync_batch_norm: false"
        )


def _refuse_empty_slices(data: Data, settings: TrainSettings, unit: int) -> None:
    """Raise for batches with fewer images than processes.

    Args:
        unit: minimum number of images per process.
    """
    count = data.smallest_batch(settings.batch_size, settings.drop_last, split_in_two=unit > 1)
    if settings.epochs and count < unit * ranks.world():
        total = data.sizes.train
        raise RobustCliError(
            f"train.batch_size: {total} training images in batches of {settings.batch_size} leave a last batch of "
            f"{count}, too few for {ranks.world()} processes; "
            + ("write train.drop_last: true" if total > settings.batch_size else "use fewer processes")
        )


def _optimizer(settings: TrainSettings, network: nn.Module) -> tuple[Optimizer, SkippedUpdates | None]:
    """Return the optimizer of a spec, which also clips gradients if set, and detects overflow in fp16."""
    groups = parameter_groups(network, settings.weight_decay, settings.weight_decay_exclude)
    optimizer: Optimizer = instantiate(settings.optimizer, groups, settings.lr)
    # Before hooks that read gradients, because gradients of the batch are means over the processes.
    optimizer.register_step_pre_hook(ranks.mean_gradients)
    skipped = SkippedUpdates(optimizer) if settings.precision == "fp16" else None
    if settings.grad_clip is not None:
        clip_gradients(optimizer, network, settings.grad_clip)
    return optimizer, skipped
