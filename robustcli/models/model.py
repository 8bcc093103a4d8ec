"""Models that can be evaluated, with the defaults of their evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from robustcli.architectures import ImageShape, Network, Normalize
from robustcli.data.loading import load_test_data
from robustcli.data.splits import Data
from robustcli.errors import RobustCliError, in_one_line
from robustcli.models.build import SELECTED_ON_TEST, network_of, preprocessor_of
from robustcli.models.digest import weights_digest
from robustcli.models.external import ExternalNetwork, precision_note, require_logits, require_values
from robustcli.models.normalization import Statistics, find_normalization
from robustcli.models.source import ModelSource, load_with_own_classes
from robustcli.registry.registry import MemberSpec
from robustcli.specs.check import checked_settings, to_plain
from robustcli.specs.settings import ThreatSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.checkpoint import CheckedCheckpoint


@dataclass(frozen=True, kw_only=True)
class EvaluationDefaults:
    """Defaults of an evaluation, from the spec in a checkpoint or from the command line.

    Args:
        name: name of the network.
        seed: seed of the noise.
        data: the images.
        threat: threat model; None if unknown.
        evaluate: evaluations by the names of their results.
        classes: names of the classes in the order of the logits, if known.
    """

    name: str
    seed: int
    data: MemberSpec
    threat: ThreatSettings | None
    evaluate: Mapping[str, MemberSpec]
    classes: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network that can be evaluated.

    Args:
        network: pixels in [0, 1] -> logits, in eval mode, on the device.
        notes: facts that a reader of the numbers must know.
        clean: accuracy on held-out images when the weights were selected, if known.
    """

    network: Network
    notes: list[str] = field(default_factory=list)
    clean: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data: `sha256`, and `mean` and `std` of the normalization (null if each image has its own)."""
        normalize = self.network.normalize
        of_channels = normalize if isinstance(normalize, Normalize) else None
        return {
            "sha256": weights_digest(self.network),
            "mean": None if of_channels is None else of_channels.mean.flatten().tolist(),
            "std": None if of_channels is None else of_channels.std.flatten().tolist(),
        }


class Model(Protocol):
    """A model to evaluate.

    Args:
        defaults: defaults, as far as the model and the command line determine them.
        origin: keys about the checkpoint in the results: file name, digest of the spec, training seed.
    """

    @property
    def defaults(self) -> EvaluationDefaults: ...

    @property
    def origin(self) -> dict[str, Any]: ...

    def load(self, data: Data, device: torch.device) -> LoadedModel:
        """Load the network for these images.

        Raises:
            RobustCliError: it does not accept them.
        """
        ...


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of `robust train`, which contains everything that an evaluation needs.

    Args:
        preprocess: transformation of the images that the user puts before the network, or None.
    """

    path: Path
    checkpoint: CheckedCheckpoint
    spec: ExperimentSpec
    data: MemberSpec
    preprocess: MemberSpec | None = None

    @property
    def defaults(self) -> EvaluationDefaults:
        spec = self.spec
        return EvaluationDefaults(
            name=spec.name,
            seed=spec.seed,
            data=self.data,
            threat=spec.threat,
            evaluate=spec.evaluate,
            classes=self.checkpoint.classes,
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
        shape = ImageShape(*self.checkpoint.shape)
        if data.shape != shape:
            raise RobustCliError(f"{self.path}: takes {shape.text}; the data have {data.shape.text}")
        _, network = network_of(self.checkpoint, device, self.path)
        notes = []
        if self.preprocess is not None:
            network.preprocess = preprocessor_of(self.preprocess)
            require_logits(network, shape, str(self.path), device)
            notes.append(_preprocessing(self.preprocess))
        # An evaluation that does not read the train part knows only the test part; older checkpoints know only all.
        known = self.checkpoint
        digest, stored = (data.digest, known.data_digest) if data.is_whole else (data.test_digest, known.test_digest)
        if stored not in (None, digest):
            notes.append("the images are not those that the checkpoint was trained and selected with")
        if self.spec.train.allow_test_selection:
            notes.append(SELECTED_ON_TEST)
        return LoadedModel(network=network, notes=notes, clean=known.check.held_out_accuracy)


@dataclass(frozen=True, kw_only=True)
class ExternalModel:
    """A network that `robust train` did not make.

    Args:
        source: source of the network.
        data: the images.
        evaluate: evaluations by the names of their results.
        mean, std: normalization before the network, if given by the user.
        preprocess: transformation of the images before the normalization, or None.
    """

    source: ModelSource
    data: MemberSpec
    evaluate: Mapping[str, MemberSpec]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    preprocess: MemberSpec | None = None

    @property
    def defaults(self) -> EvaluationDefaults:
        name, facts = self.source.name, self.source.facts
        threat = None
        if facts.norm is not None and facts.eps is not None:
            known = {"norm": facts.norm, "eps": parse_scalar(facts.eps)}
            threat = checked_settings(ThreatSettings, known, ("threat",), name)
        return EvaluationDefaults(name=name, seed=0, data=self.data, threat=threat, evaluate=self.evaluate)

    @property
    def origin(self) -> dict[str, Any]:
        return {"checkpoint": None, "name": self.source.name, "spec_digest": None, "training_seed": None}

    def load(self, data: Data, device: torch.device) -> LoadedModel:
        return prepared(self.source, data.shape, device, self.mean, self.std, data, self.preprocess)


def prepared(
    source: ModelSource,
    shape: ImageShape,
    device: torch.device,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    data: Data | None,
    preprocess: MemberSpec | None = None,
) -> LoadedModel:
    """Load an external network and put its normalization in front of it.

    Args:
        shape: shape of the images; without data the network may have another number of classes.
        mean, std: normalization, if given by the user.
        data: images to determine the normalization, if neither user nor source states it; None if there are none.
        preprocess: transformation of the images before the normalization, or None.

    Raises:
        RobustCliError: the network does not accept such images, or its normalization is unknown.
    """
    name, plain_because = source.name, source.facts.plain_because
    # Number of classes from which on the network may have another one than the images; None: it may not.
    fewest = 2 if data is None else None if data.classes_are_known else shape.classes
    if fewest is None:
        loaded = source.load(shape, device)
    else:
        loaded = load_with_own_classes(source, shape, device, at_least=fewest)
    require_values(loaded.network, name)

    def build(statistics: Statistics) -> ExternalNetwork:
        means, stds = (_per_channel(values, shape.channels, name) for values in statistics)
        network = ExternalNetwork(Normalize(means, stds), loaded.network, preprocessor_of(preprocess)).to(device)
        try:
            return network.eval()
        except Exception as error:  # a network of other packages, such as torch.export, may raise anything
            raise RobustCliError(
                f"{name}: cannot be set to evaluation mode by eval() ({in_one_line(error)})"
            ) from error

    plain = build(((0.0,), (1.0,)))
    require_logits(plain, shape, name, device, at_least=fewest)
    notes = [*loaded.notes, *precision_note(plain, name)]
    if plain.preprocess is not None and preprocess is not None:
        notes.append(_preprocessing(preprocess))
    if mean is not None and std is not None:
        statistics, words = (mean, std), "as --mean and --std say"
    elif loaded.mean is not None and loaded.std is not None:
        statistics, words = (loaded.mean, loaded.std), loaded.source
    elif data is not None:
        found = find_normalization(build, data, name, plain_because)
        statistics, words = found.statistics, "found on clean images"
        notes.append(found.note)
    elif plain_because is not None:
        statistics, words = ((0.0,), (1.0,)), plain_because
    else:
        raise RobustCliError(
            f"{name}: nothing says which normalization it was trained with; give mean and std (0 and 1 mean none), or "
            "labeled images to find it with (data)"
        )
    means, stds = (_per_channel(values, shape.channels, name) for values in statistics)
    return LoadedModel(network=build((means, stds)), notes=[*notes, _normalization(means, stds, words)])


def _per_channel(values: tuple[float, ...], channels: int, where: str) -> tuple[float, ...]:
    """One number for each channel; a single number stands for all."""
    if len(values) not in (1, channels):
        raise RobustCliError(
            f"{where}: normalization with {len(values)} numbers; expected one for each channel of the images, which "
            f"is {channels}, or one for all"
        )
    return values * channels if len(values) == 1 else values


def _normalization(mean: tuple[float, ...], std: tuple[float, ...], source: str) -> str:
    """Describe the normalization, so that users notice a wrong one."""
    if set(mean) == {0.0} and set(std) == {1.0}:
        done = "none, pixels in [0, 1] are used unchanged"
    else:
        means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
        done = f"mean {means}, std {stds}"
    return f"normalization before the network: {done} ({source})"


def _preprocessing(chosen: MemberSpec) -> str:
    settings = "".join(f" {key}={value}" for key, value in to_plain(chosen.parameters).items())
    return f"images pass through {chosen.name}{settings} before the network"


def test_images(defaults: EvaluationDefaults, device: torch.device) -> Data:
    """Return the test images of an evaluation, with labels in the order of the network's classes."""
    data = load_test_data(defaults.data, device)
    if defaults.classes is not None:
        data.name_classes(defaults.classes)
    return data
