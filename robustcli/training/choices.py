"""Settings of training that a spec leaves to the machine: `auto` of `train.precision` and `train.compile`."""

from dataclasses import replace

import torch

from robustcli.data.splits import Data
from robustcli.defenses import Defense
from robustcli.registry.types import Precision
from robustcli.runtime import ranks
from robustcli.runtime.precision import native_precision
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.runs import RunFolder

# Estimated: compilation takes about 100 s and saves about 10 ms per update.
_COMPILED_FROM = 10_000


def chosen_settings(
    spec: ExperimentSpec, defense: Defense, data: Data, device: torch.device, folder: RunFolder | None = None
) -> TrainSettings:
    """Return the settings of training with a definite precision and compilation; the first process decides for all.

    Precision is bf16 on a GPU with instructions for it, unless the method does not support it, and fp32 otherwise. On a
    CPU bf16 can be faster too, but fp32 gives the same results on all processors. Compilation is chosen on a GPU for
    long runs of methods that support it. A resumed run keeps its precision on every machine.

    Args:
        folder: folder of the run; None if nothing is stored.
    """
    return ranks.from_first(lambda: _chosen(spec, defense, data, device, folder))


def _chosen(
    spec: ExperimentSpec, defense: Defense, data: Data, device: torch.device, folder: RunFolder | None
) -> TrainSettings:
    with_precision = replace(spec.train, precision=_precision(spec, device, folder))
    return replace(with_precision, compile=_is_compiled(spec, with_precision, defense, data, device))


def _precision(spec: ExperimentSpec, device: torch.device, folder: RunFolder | None) -> Precision:
    if spec.train.precision != "auto":
        return spec.train.precision
    begun = None if folder is None else folder.begun_precision()
    if begun is not None:
        return begun
    native = native_precision(device)
    return native if _allows(spec, replace(spec.train, precision=native), "precision") else "fp32"


def _is_compiled(
    spec: ExperimentSpec, settings: TrainSettings, defense: Defense, data: Data, device: torch.device
) -> bool:
    if settings.compile != "auto":
        return settings.compile
    updates = defense.replays * data.steps_per_epoch(settings.batch_size, settings.drop_last) * settings.epochs
    is_short = updates < _COMPILED_FROM or data.sizes.train < settings.batch_size
    is_synchronized = settings.sync_batch_norm and ranks.world() > 1
    if device.type == "cpu" or is_short or is_synchronized:
        return False
    return _allows(spec, replace(settings, compile=True), "compile")


def _allows(spec: ExperimentSpec, settings: TrainSettings, key: str) -> bool:
    """Return True if a spec with these settings has no problem at a key of `train`."""
    return not any(where[:2] == ("train", key) for where, _ in replace(spec, train=settings).problems())
