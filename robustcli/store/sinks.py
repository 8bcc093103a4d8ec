"""Live logs: report the epochs of a training to other tools, in addition to train.jsonl."""

import csv
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from robustcli.errors import RobustCliError, in_one_line
from robustcli.store.files import write_text
from robustcli.store.records import Record
from robustcli.store.runs import RunFolder

SinkName = Literal["csv", "tensorboard", "wandb", "trackio"]


class Sink:
    """Receives the records of a training."""

    def write(self, record: Record) -> None:
        """Receive the record of an epoch, or of an event such as a collapse."""

    def close(self) -> None:
        """Finish; nothing is written later."""


def require_packages(names: Sequence[SinkName]) -> None:
    """Check that the packages of live logs are installed.

    Raises:
        RobustCliError: one is missing; the message says how to install it.
    """
    for name in names:
        if name != "csv" and find_spec(name) is None:
            raise RobustCliError(
                f"train.log: {name} needs the package {name}, which is not installed: pip install {name}"
            )


class LiveLogs:
    """The live logs of a run; a log that fails is dropped with a warning, and training continues.

    Args:
        folder: folder of the run.
        config: settings that are shown next to the curves.
    """

    def __init__(self, names: Sequence[SinkName], folder: RunFolder, config: Mapping[str, Any]) -> None:
        self._sinks: dict[str, Sink] = {}
        for name in dict.fromkeys(names):
            self._attempt(name, lambda name=name: self._sinks.update({name: _OPEN[name](folder, config)}))  # type: ignore[misc]

    def write(self, record: Record) -> None:
        """Pass a record to every log."""
        for name, sink in list(self._sinks.items()):
            self._attempt(name, lambda sink=sink: sink.write(record))  # type: ignore[misc]

    def close(self) -> None:
        """Finish every log."""
        for name, sink in list(self._sinks.items()):
            self._attempt(name, sink.close)

    def _attempt(self, name: str, do: Callable[[], None]) -> None:
        # Errors of other packages, networks and disks must not end a training of days.
        try:
            do()
        except Exception as error:
            self._sinks.pop(name, None)
            warnings.warn(f"train.log: {name} failed and is dropped ({in_one_line(error)})", stacklevel=2)


class Csv(Sink):
    """train.csv in the folder of the run: one line per epoch, rewritten when new columns appear."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        return self._folder.path / "train.csv"

    def write(self, record: Record) -> None:
        # From train.jsonl, which has the epochs of earlier sessions, without duplicates.
        rows = [
            {"epoch": epoch.epoch, "seconds": epoch.seconds, "robust": epoch.robust, **epoch.measures}
            for epoch in self._folder.epochs()
        ]
        columns = dict.fromkeys(key for row in rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class TensorBoard(Sink):
    """Event files in the folder tensorboard of the run."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Repeated epochs replace those of an earlier session.
        self._writer: Any = SummaryWriter(str(folder.path / "tensorboard"), purge_step=len(folder.epochs()))

    def write(self, record: Record) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Tracked(Sink):
    """A run of wandb or trackio, which have the same interface."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, record: Record) -> None:
        self._run.log(_numbers(record), step=record.epoch)

    def close(self) -> None:
        self._run.finish()


def _wandb(folder: RunFolder, config: Mapping[str, Any]) -> Sink:
    """A run of Weights & Biases, continued when the training is resumed; WANDB_MODE and WANDB_PROJECT apply."""
    import wandb  # type: ignore[import-not-found,unused-ignore]

    run = wandb.init(
        project=None if os.environ.get("WANDB_PROJECT") else "robust",
        name=_title(folder),
        id=_title(folder).replace("/", "-"),
        resume="allow",
        dir=str(folder.path),
        config=dict(config),
    )
    return _Tracked(run)


def _trackio(folder: RunFolder, config: Mapping[str, Any]) -> Sink:
    """A run of trackio, whose data base lies on this machine."""
    import trackio  # type: ignore[import-not-found,unused-ignore]

    name = _title(folder).replace("/", "-")
    return _Tracked(trackio.init(project="robust", name=name, config=dict(config), resume="allow"))


_OPEN: dict[str, Callable[[RunFolder, Mapping[str, Any]], Sink]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _title(folder: RunFolder) -> str:
    return "/".join(folder.path.parts[-2:])


def _numbers(record: Record) -> dict[str, float]:
    found = {}
    for name, value in record.to_json().items():
        with suppress(TypeError, ValueError):
            if name != "epoch" and not isinstance(value, str):
                found[name] = float(value)
    return found
