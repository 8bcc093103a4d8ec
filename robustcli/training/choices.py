"""Settings of training that a spec leaves to the machine: `auto` of `train.precision` and `train.compile`."""

from dataclasses import replace

import torch

from robustcli.data import Data
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
    chosen: tuple[Precision, bool] = ranks.from_first(lambda: _Choices(spec, defense, data, device, folder).made())
    return replace(spec.train, precision=chosen[0], compile=chosen[1])


class _Choices:
    def __init__(
        self, spec: ExperimentSpec, defense: Defense, data: Data, device: torch.device, folder: RunFolder | None
    ) -> None:
        self._spec, self._defense, self._data, self._device, self._folder = spec, defense, data, device, folder

    def made(self) -> tuple[Precision, bool]:
        """Precision, and whether passes are compiled."""
        precision = self._precision()
        return precision, self._is_compiled(replace(self._spec.train, precision=precision))

    def _precision(self) -> Precision:
        asked = self._spec.train.precision
        if asked != "auto":
            return asked
        begun = None if self._folder is None else self._folder.begun_precision()
        if begun is not None:
            return begun
        native = native_precision(self._device)
        return native if self._allows(replace(self._spec.train, precision=native), "precision") else "fp32"

    def _is_compiled(self, settings: TrainSettings) -> bool:
        if settings.compile != "auto":
            return settings.compile
        per_epoch = self._data.steps_per_epoch(settings.batch_size, settings.drop_last)
        updates = self._defense.replays * per_epoch * settings.epochs
        is_short = updates < _COMPILED_FROM or self._data.sizes["train"] < settings.batch_size
        is_synchronized = settings.sync_batch_norm and ranks.world() > 1
        if self._device.type == "cpu" or is_short or is_synchronized:
            return False
        return self._allows(replace(settings, compile=True), "compile")

    def _allows(self, settings: TrainSettings, key: str) -> bool:
        """Return True if a spec with these settings has no problem at a key of `train`."""
        return not any(where[:2] == ("train", key) for where, _ in replace(self._spec, train=settings).problems())
