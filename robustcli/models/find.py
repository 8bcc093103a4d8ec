"""From the words of a command line to the subject of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, suggest
from robustcli.models.architecture import Architecture
from robustcli.models.body import Origin
from robustcli.models.code import load_code
from robustcli.models.script import Script, is_torchscript
from robustcli.models.sources import Foreign, Subject, Trained
from robustcli.models.weights_file import Weights, read_weights
from robustcli.models.zoos import in_timm, light_xcit, published
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.registry.types import Family
from robustcli.specs.check import checked
from robustcli.specs.settings import ArchitectureOptions, DataOptions, EvaluateOptions
from robustcli.specs.spec import ExperimentSpec, override_text
from robustcli.specs.yamlfile import parse_scalar, parse_yaml, to_yaml
from robustcli.store import checkpoint

_HERE = "the command line"
_ZOOS = ("torchvision", "timm")
# What is evaluated where neither a spec nor --attack says it.
_DEFAULT = ("clean", "autoattack")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a user names what is to be evaluated; None is not said.

    Args:
        text: a checkpoint, a file of weights, a TorchScript file, torchvision:NAME or timm:NAME.
        overrides: dotted overrides of the spec in a checkpoint, or of architecture and data.
        architecture: registered name of the network that weights in a file belong to.
        model: "path/file.py:function" or "package.module:function".
        weights: a file for `model`, a file or a published name for a zoo.
        weights_key: where in their file weights are.
        mean, std: of the normalisation before a network from elsewhere, "0.5" or one number for each channel.
        data: a data set's name, an .npz file or a folder of images.
    """

    text: str | None = None
    overrides: tuple[str, ...] = ()
    architecture: str | None = None
    model: str | None = None
    weights: str | None = None
    weights_key: str | None = None
    mean: str | None = None
    std: str | None = None
    data: str | None = None


def find_subject(wanted: Wanted) -> Subject:
    """What the user names; files are read here, networks are built when the images are known.

    Raises:
        RobustCliError: nothing is named, or two things, or what is named is not there or cannot be read.
    """
    if wanted.text is None and wanted.model is None:
        raise RobustCliError(
            "nothing says what to evaluate; name a checkpoint, a file of weights with --architecture, a TorchScript "
            "file, torchvision:NAME, timm:NAME, or --model file.py:function"
        )
    if wanted.model is not None and (wanted.text is not None or wanted.architecture is not None):
        other = "--architecture" if wanted.text is None else f"'{wanted.text}'"
        hint = "" if wanted.text is None else "; weights for --model go to --weights"
        raise RobustCliError(f"{other} and --model both say what to evaluate; leave one out{hint}")
    if wanted.weights_key is not None and wanted.architecture is None and wanted.weights is None:
        raise RobustCliError("--weights-key needs --architecture or --weights, which name a file of weights")
    if wanted.model is not None:
        weights = None if wanted.weights is None else _read(wanted, wanted.weights)
        return _foreign(wanted, load_code(wanted.model, weights))
    assert wanted.text is not None
    zoo, _, model = wanted.text.partition(":")
    if zoo in _ZOOS:
        return _from_zoo(wanted, zoo, model)
    if wanted.weights is not None:
        raise RobustCliError(f"--weights needs --model, torchvision:NAME or timm:NAME; '{wanted.text}' brings its own")
    if wanted.architecture is not None:
        return _with_architecture(wanted, {"name": wanted.architecture}, wanted.text)
    path = Path(wanted.text)
    if path.is_file() and is_torchscript(path):
        return _foreign(wanted, Script(path))
    return _trained(wanted, path)


def _trained(wanted: Wanted, path: Path) -> Trained:
    if wanted.mean is not None or wanted.std is not None:
        raise RobustCliError(f"--mean and --std: {path} brings its own normalisation")
    contents = _checkpoint(path)
    source = f"the spec inside {path}"
    inside = ExperimentSpec.parse(contents["spec"], source)
    # With --data the spec's own data set is out of the play, and overrides of data are about the other one.
    rest = [text for text in wanted.overrides if wanted.data is None or not _is_about("data", text)]
    spec = ExperimentSpec.parse(override_text(contents["spec"], rest, source), source)
    if spec.architecture != inside.architecture:
        raise RobustCliError("architecture: cannot be overridden")
    height = contents["shape"][1]
    data = spec.data if wanted.data is None else _data(_overridden(wanted, {"data": _images(wanted.data, height)}))
    return Trained(path, contents, spec, data)


def _checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of `robust train`; of other weights the error says what else is needed."""
    try:
        return checkpoint.load(path)
    except RobustCliError as error:
        try:
            weights = read_weights(path)
        except RobustCliError:
            raise error from None
        raise RobustCliError(f"{error}; for weights alone say --architecture or --model too{weights.hint}") from None


def _from_zoo(wanted: Wanted, zoo: str, model: str) -> Foreign:
    if wanted.architecture is not None:
        raise RobustCliError(f"--architecture: {wanted.text} brings its own; leave one out")
    is_file = wanted.weights is not None and Path(wanted.weights).is_file()
    if wanted.weights_key is not None and not is_file:
        raise RobustCliError(f"--weights-key: {wanted.weights} is no file of weights")
    if zoo == "timm":
        if wanted.weights is not None and not is_file:
            raise RobustCliError(f"--weights: {wanted.weights}: no such file; timm's tags follow the name after a dot")
        ours = light_xcit(model)
        if wanted.weights is not None:
            return _with_architecture(wanted, ours or {"name": "timm", "model": model}, wanted.weights)
        if ours is not None:
            raise RobustCliError(f"timm:{model}: timm does not have its weights; --weights names a file of them")
        return _foreign(wanted, in_timm(model))
    if wanted.weights is None:
        raise RobustCliError(
            f"{wanted.text}: its weights would be random; --weights names a file, or published ones such as DEFAULT"
        )
    if is_file:
        return _with_architecture(wanted, {"name": "torchvision", "model": model}, wanted.weights)
    return _foreign(wanted, published(model, wanted.weights))


def _with_architecture(wanted: Wanted, architecture: Mapping[str, Any], file: str) -> Foreign:
    values = _overridden(wanted, {"architecture": dict(architecture), **_data_of(wanted, None)})
    family = Family("architectures", ArchitectureOptions)
    chosen = checked(lambda checker: checker.chosen(family, values["architecture"], ("architecture",)), _HERE)
    if chosen.options.normalize == "per_image":
        raise RobustCliError(
            "architecture.normalize=per_image: weights of a file are normalised per channel; write dataset or none"
        )
    if wanted.mean is not None and chosen.options.normalize == "none":
        raise RobustCliError("--mean and architecture.normalize=none contradict each other; leave one out")
    return _foreign(wanted, Architecture(chosen, _read(wanted, file)), values)


def _foreign(wanted: Wanted, source: Origin, values: Mapping[str, Any] | None = None) -> Foreign:
    """Under the terms of the command line.

    Args:
        values: architecture and data with overrides applied, if that is done.
    """
    if values is None:
        values = _overridden(wanted, _data_of(wanted, source.size))
    for override in wanted.overrides:
        if not _is_about("data", override) and not _is_about("architecture", override):
            raise RobustCliError(
                f"override '{override}': {source.name} has no spec; only data and, with --architecture, architecture "
                "can be set so"
            )
    if "architecture" in values and not isinstance(source, Architecture):
        raise RobustCliError(f"architecture: {source.name} brings its own, which cannot be overridden")
    if (wanted.mean is None) != (wanted.std is None):
        raise RobustCliError("--mean and --std are given together, or neither is")
    mean, std = _numbers("--mean", wanted.mean), _numbers("--std", wanted.std)
    if std is not None and min(std) <= 0:
        raise RobustCliError(f"--std: {wanted.std}: expected numbers above 0")
    return Foreign(
        source=source, data=_data(values), evaluate={name: _evaluator(name) for name in _DEFAULT}, mean=mean, std=std
    )


def _evaluator(name: str) -> MemberSpec:
    family = Family("evaluators", EvaluateOptions)
    chosen: MemberSpec = checked(lambda checker: checker.chosen(family, name, (name,)), _HERE)
    return chosen


def _data_of(wanted: Wanted, size: int | None) -> dict[str, Any]:
    return {} if wanted.data is None else {"data": _images(wanted.data, size)}


def _images(text: str, size: int | None) -> dict[str, Any]:
    """What --data says, as a spec has it.

    Args:
        size: side that images of a folder get; None is not known.
    """
    if text in catalog("datasets"):
        return {"name": text}
    if Path(text).is_dir():
        return {"name": "image_folder", "root": text, **({} if size is None else {"size": size})}
    if Path(text).suffix == ".npz":
        return {"name": "npz", "path": text}
    raise RobustCliError(f"--data: '{text}' is no data set, folder or .npz file{suggest(text, catalog('datasets'))}")


def _overridden(wanted: Wanted, values: Mapping[str, Any]) -> dict[str, Any]:
    """Architecture and data with the overrides applied that are about them."""
    overrides = [text for text in wanted.overrides if _is_about("data", text) or _is_about("architecture", text)]
    value: dict[str, Any] = parse_yaml(override_text(to_yaml(dict(values)), overrides, _HERE), _HERE).value
    return value


def _data(values: Mapping[str, Any]) -> MemberSpec:
    if "data" not in values:
        raise RobustCliError("--data: nothing says which images; name a data set, an .npz file or a folder of images")
    data = values["data"]
    if isinstance(data, Mapping) and data.get("name") == "image_folder" and "size" not in data:
        raise RobustCliError(
            "data.size: nothing says how large the images of a folder are to be; write data.size=32 or what the "
            "network was made for"
        )
    chosen: MemberSpec = checked(
        lambda checker: checker.chosen(Family("datasets", DataOptions), data, ("data",)), _HERE
    )
    return chosen


def _is_about(part: str, override: str) -> bool:
    return override.partition("=")[0].partition(".")[0] == part


def _read(wanted: Wanted, text: str) -> Weights:
    return read_weights(Path(text), wanted.weights_key)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    values = [parse_scalar(part.strip()) for part in text.split(",")]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise RobustCliError(f"{option}: '{text}' is not a number, or one for each channel such as 0.49,0.48,0.45")
    return tuple(float(value) for value in values)
