"""Build the data of a spec."""

import torch

from robustcli.data.datasets import Source
from robustcli.data.extra import Extra, read_extra
from robustcli.data.splits import Data, prepare, shape_of
from robustcli.data.targets import Targets
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.specs.settings import DataOptions


def load_test_data(chosen: MemberSpec, device: torch.device) -> Data:
    """Load the test images of a spec, without the train part if the data set supports that."""
    if not chosen.member.reads_test:
        return load_data(chosen, device)
    options: DataOptions = chosen.options
    return prepare(instantiate(chosen, "test"), val_size=0, train_size=None, device=device, workers=options.workers)


def load_data(chosen: MemberSpec, device: torch.device, *, to_train: bool = False) -> Data:
    """Load the images of a spec, split and on the device; extra images and label smoothing only with `to_train`."""
    options: DataOptions = chosen.options
    source: Source = instantiate(chosen)
    extra, targets = None, None
    if to_train:
        added = options.extra
        if added is not None:
            extra = Extra(read_extra(added.path, added.labels, shape_of(source)), added.share)
        targets = Targets(
            smoothing=options.label_smoothing,
            extra_smoothing=0.0 if added is None else added.label_smoothing,
            over=options.smoothing_over,
            reach_attack=options.smoothing_for == "both",
            is_complete=extra is None or extra.is_labeled,
        )
    return prepare(
        source,
        val_size=options.val_size,
        train_size=options.train_size,
        device=device,
        workers=options.workers,
        extra=extra,
        targets=targets,
    )
