"""What `robust eval` evaluates: a network, and under which defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape, Network, Normalize
from robustcli.data import Data
from robustcli.errors import RobustCliError
from robustcli.models.build import network_of
from robustcli.models.checkpoint_facts import SELECTED_ON_TEST, held_out_accuracy
from robustcli.models.digest import weights_digest
from robustcli.models.source import ModelSource, reason
from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import ThreatSettings
from robustcli.specs.spec import ExperimentSpec

_GUESS = (
    "a guess, the data set's own; a network that was trained with another one loses accuracy: say which by --mean and "
    "--std, 0 and 1 for none"
)


@dataclass(frozen=True, kw_only=True)
class EvaluationDefaults:
    """What an evaluation is told beside the network: by the spec in a checkpoint, or by the command line.

    Args:
        name: of the network.
        seed: of the evaluations' noise.
        data: the images.
        threat: None where nothing says it.
        evaluate: evaluations by the names of their results.
    """

    name: str
    seed: int
    data: MemberSpec
    threat: ThreatSettings | None
    evaluate: Mapping[str, MemberSpec]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network that can be evaluated.

    Args:
        network: pixels in [0, 1] -> logits, in eval mode, on the device.
        notes: what a reader of its numbers must know.
        clean: its accuracy on held-out images when its weights were chosen, if known.
    """

    network: Network
    notes: list[str] = field(default_factory=list)
    clean: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data: `sha256`, and `mean` and `std` of the normalisation before the network, null of each image's."""
        normalize = self.network.normalize
        of_channels = normalize if isinstance(normalize, Normalize) else None
        return {
            "sha256": weights_digest(self.network),
            "mean": None if of_channels is None else of_channels.mean.flatten().tolist(),
            "std": None if of_channels is None else of_channels.std.flatten().tolist(),
        }


class Model(Protocol):
    """What is evaluated.

    Args:
        defaults: as far as they are known from it and from the command line.
        origin: the checkpoint's keys in the results: file name, digest of the spec, training seed.
    """

    @property
    def defaults(self) -> EvaluationDefaults: ...

    @property
    def origin(self) -> dict[str, Any]: ...

    def load(self, data: Data, device: torch.device) -> LoadedModel:
        """The network for these images.

        Raises:
            RobustCliError: it does not take them.
        """
        ...


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of `robust train`: it says everything itself."""

    path: Path
    contents: Mapping[str, Any]
    spec: ExperimentSpec
    data: MemberSpec

    @property
    def defaults(self) -> EvaluationDefaults:
        spec = self.spec
        return EvaluationDefaults(
            name=spec.name, seed=spec.seed, data=self.data, threat=spec.threat, evaluate=spec.evaluate
        )

    @property
    def origin(self) -> dict[str, Any]:
        return {
            "checkpoint": self.path.name,
            "name": self.spec.name,
            "spec_digest": self.spec.digest,
            "training_seed": self.spec.seed,
        }

    def load(self, data: Data, device: torch.device) -> LoadedModel:
        shape = ImageShape(*self.contents["shape"])
        if data.shape != shape:
            raise RobustCliError(f"{self.path}: takes {shape.words}; the data have {data.shape.words}")
        _, network = network_of(self.contents, device)
        notes = []
        if data.digest != self.contents["data_digest"]:
            notes.append("the images are not those that the checkpoint was trained and selected with")
        if self.spec.train.allow_test_selection:
            notes.append(SELECTED_ON_TEST)
        return LoadedModel(network=network, notes=notes, clean=held_out_accuracy(self.contents["check"]))


@dataclass(frozen=True, kw_only=True)
class ExternalModel:
    """A network that `robust train` did not make.

    Args:
        source: where it comes from.
        data: the images.
        evaluate: evaluations by the names of their results.
        mean, std: of the normalisation before it, if the user says so.
    """

    source: ModelSource
    data: MemberSpec
    evaluate: Mapping[str, MemberSpec]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def defaults(self) -> EvaluationDefaults:
        return EvaluationDefaults(name=self.source.name, seed=0, data=self.data, threat=None, evaluate=self.evaluate)

    @property
    def origin(self) -> dict[str, Any]:
        return {"checkpoint": None, "name": self.source.name, "spec_digest": None, "training_seed": None}

    def load(self, data: Data, device: torch.device) -> LoadedModel:
        loaded = self.source.load(data.shape, device)
        channels = data.shape.channels
        if self.mean is not None and self.std is not None:
            mean, std, source = self.mean, self.std, "as --mean and --std say"
        elif loaded.mean is not None and loaded.std is not None:
            mean, std, source = loaded.mean, loaded.std, loaded.source
        elif self.source.plain_because is not None:
            mean, std, source = (0.0,), (1.0,), self.source.plain_because
        else:
            mean, std, source = data.mean, data.std, _GUESS
        mean, std = (_per_channel(values, channels, self.source.name) for values in (mean, std))
        network = Network(Normalize(mean, std), loaded.network).to(device).eval()
        _require_logits(network, data.shape, self.source.name, device)
        return LoadedModel(network=network, notes=[*loaded.notes, _normalisation(mean, std, source)])


def _per_channel(values: tuple[float, ...], channels: int, where: str) -> tuple[float, ...]:
    """One number for each channel, where one may stand for all."""
    if len(values) not in (1, channels):
        raise RobustCliError(
            f"{where}: normalisation with {len(values)} numbers; expected one for each channel of the images, which "
            f"is {channels}, or one for all"
        )
    return values * channels if len(values) == 1 else values


def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], source: str) -> str:
    """What is done to pixels before the network, in words: a wrong guess must be seen."""
    if set(mean) == {0.0} and set(std) == {1.0}:
        done = "none, pixels in [0, 1] go in as they are"
    else:
        means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
        done = f"mean {means}, std {stds}"
    return f"normalisation before the network: {done} ({source})"


def _require_logits(network: nn.Module, shape: ImageShape, name: str, device: torch.device) -> None:
    """Ask the network once, before anything expensive: does it take these images and know as many classes?"""
    images = torch.full((2, shape.channels, shape.height, shape.width), 0.5, device=device)
    try:
        with torch.no_grad():
            logits = network(images)
    # A network from elsewhere raises what it likes.
    except Exception as error:
        raise RobustCliError(f"{name}: does not take {shape.words}: {reason(error)}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, shape.classes):
        what = f"{found[1]} classes" if isinstance(found, tuple) and len(found) == 2 else f"an output of {found}"
        raise RobustCliError(
            f"{name}: gives {what} for 2 images; the data have {shape.classes} classes, so (2, {shape.classes}) is "
            "expected"
        )
