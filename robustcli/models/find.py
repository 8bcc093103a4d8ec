"""Find the model that a command line names."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, shortened
from robustcli.models.architecture import Architecture
from robustcli.models.code import load_code
from robustcli.models.model import ExternalModel, Model, TrainedModel
from robustcli.models.named_data import HERE, data_of, spec_of_images
from robustcli.models.schemes import NamedFile, Scheme, forms, scheme_of
from robustcli.models.script import Script, is_torchscript
from robustcli.models.source import ModelSource
from robustcli.models.weights_file import read_weights
from robustcli.models.weights_fit import hint_of
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.registry.types import Family
from robustcli.specs.check import checked_member
from robustcli.specs.settings import ARCHITECTURE, EVALUATOR
from robustcli.specs.spec import ExperimentSpec, overridden, override_text
from robustcli.specs.yamlfile import parse_scalar, parse_yaml, to_yaml
from robustcli.store.checkpoint import CheckedCheckpoint
from robustcli.store.results import ModelRequest
from robustcli.store.runs import RunFolder
from robustcli.store.search import run_folders

# Maximum number of runs in a message.
_LISTED = 10
# Default evaluation without a spec and --attack.
_DEFAULT = ("clean", "autoattack")


def find_model(request: ModelRequest) -> Model:
    """Find the model that the user names. Files are read here; networks are built when the images are known.

    Raises:
        RobustCliError: no model is named, or two, or it is missing or cannot be read.
    """
    found = find_source(request)
    return _trained(request, found) if isinstance(found, Path) else _external(request, found)


def find_source(request: ModelRequest) -> ModelSource | Path:
    """Find the source of a model without images: a checkpoint of `robust train`, or another source.

    Raises:
        RobustCliError: no model is named, or two, or it is missing or cannot be read.
    """
    if request.text is None and request.model is None:
        raise RobustCliError(
            "no model given; name a run or a checkpoint, a file of weights with --architecture, a "
            f"TorchScript file, {', '.join(forms())}, or --model file.py:function"
        )
    if request.model is not None and (request.text is not None or request.architecture is not None):
        other = "--architecture" if request.text is None else f"'{request.text}'"
        hint = "" if request.text is None else "; weights for --model go to --weights"
        raise RobustCliError(f"{other} and --model both name a model; remove one{hint}")
    if request.weights_key is not None and request.architecture is None and request.weights is None:
        raise RobustCliError("--weights-key needs --architecture or --weights, which name a file of weights")
    if request.model is not None:
        weights = None if request.weights is None else read_weights(Path(request.weights), request.weights_key)
        return load_code(request.model, weights)
    assert request.text is not None
    named = scheme_of(request.text)
    if named is not None:
        return _from_scheme(request, *named)
    if request.weights is not None:
        raise RobustCliError(
            f"--weights needs --model, or a name such as {' or '.join(forms())}; '{request.text}' brings its own"
        )
    return _of_file(request, NamedFile(path=Path(request.text)))


def _of_file(request: ModelRequest, file: NamedFile) -> ModelSource | Path:
    """Return the source in a file: weights of an architecture that the user names, TorchScript, or a checkpoint."""
    if request.architecture is not None:
        named = scheme_of(request.architecture)
        if named is None:
            return _with_architecture(request, {"name": request.architecture}, file)
        # A name such as timm:resnet50 means its architecture, with the weights of the file.
        found = named[0].find(named[1], str(file.path))
        if not isinstance(found, NamedFile) or found.architecture is None:
            raise RobustCliError(f"--architecture: '{request.architecture}' names no architecture")
        return _with_architecture(request, found.architecture, replace(found, title=None))
    if file.path.is_file() and is_torchscript(file.path):
        return Script(file.path)
    return checkpoint_in(file.path)


def checkpoint_in(path: Path) -> Path:
    """Return the checkpoint that a path names; for the folder of a run, its selected weights.

    Raises:
        RobustCliError: a folder contains no run, or several; or the path is the name of an architecture.
    """
    if not path.exists() and str(path) in catalog("architectures"):
        raise RobustCliError(
            f"{path}: no such file; {path} is an architecture, so name the file of its weights: "
            f"robust eval WEIGHTS --architecture {path}"
        )
    if path.suffix == ".py" and path.is_file():
        raise RobustCliError(
            f"{path}: a Python file; write --model {path}:FUNCTION with a function that builds the network, and "
            "--weights FILE if it does not load them"
        )
    if not path.exists():
        # A run without its folder, and weights without the folder of checkpoints.
        names = (path.name, f"{path.name}.pt")
        others = (Path("runs") / path, *(path.parent / "checkpoints" / name for name in names))
        if near := next((other for other in others if other.exists()), None):
            raise RobustCliError(f"{path}: no such file; did you mean '{near}'?")
    if not path.is_dir():
        return path
    if (own := next((place for place in (RunFolder(path).best, path / "best.pt") if place.exists()), None)) is not None:
        return own
    found = [best for folder in run_folders(path) if (best := RunFolder(folder).best).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        shown = "\n".join(f"  {one.parent.parent}" for one in found[:_LISTED])
        rest = f"\n  and {len(found) - _LISTED} more; `robust runs {path}` lists all" if len(found) > _LISTED else ""
        raise RobustCliError(
            f"{path}: holds {len(found)} runs; name one of them, or several for a table:\n{shown}{rest}"
        )
    if (path / "results.json").is_file():
        raise RobustCliError(f"{path}: contains a stored evaluation but no weights; `robust results {path}` prints it")
    raise RobustCliError(
        f"{path}: a folder without a run; expected a checkpoint, or the folder of a run with checkpoints/best.pt"
    )


def _trained(request: ModelRequest, path: Path) -> TrainedModel:
    if request.mean is not None or request.std is not None:
        raise RobustCliError(f"--mean and --std: {path} has its own normalization; remove both")
    checkpoint = read_checkpoint(path)
    source = f"the spec inside {path}"
    inside = ExperimentSpec.parse(checkpoint.spec, source)
    if request.data == inside.data.name:
        # The same data set, which lies where the spec in the checkpoint says.
        request = request.model_copy(update={"data": None})
    # With --data the spec's data set is not used, and neither are overrides of its parameters.
    rest = [
        text
        for text in request.overrides
        if not _is_about("preprocess", text) and (request.data is None or not _is_about("data", text))
    ]
    spec = ExperimentSpec.check(overridden(parse_yaml(checkpoint.spec, source), rest), is_stored=True)
    if spec.architecture != inside.architecture:
        raise RobustCliError("architecture: cannot be overridden")
    height = checkpoint.shape[1]
    data = spec.data
    if request.data is not None:
        data = data_of(_overridden(request, "data", spec_of_images(request.data, height)))
    preprocess = _preprocess(request)
    own = spec.architecture.options.preprocess.name
    if preprocess is not None and own != "none":
        raise RobustCliError(f"--preprocess: {path} was trained behind '{own}', which stays; leave it out")
    return TrainedModel(path, checkpoint, spec, data, preprocess)


def read_checkpoint(path: Path) -> CheckedCheckpoint:
    """Return a checkpoint of `robust train`; for other weights the error names the missing option."""
    try:
        return CheckedCheckpoint.read(path)
    except RobustCliError as error:
        try:
            weights = read_weights(path)
        except RobustCliError:
            raise error from None
        raise RobustCliError(
            f"{path}: not written by `robust train`; weights of another program need --architecture NAME, or "
            f"--model file.py:function --weights {path}{hint_of(weights)}"
        ) from None


def _from_scheme(request: ModelRequest, scheme: Scheme, name: str) -> ModelSource | Path:
    if request.architecture is not None and not scheme.takes_architecture:
        raise RobustCliError(f"--architecture: {request.text} has its own architecture; remove the option")
    is_file = request.weights is not None and Path(request.weights).is_file()
    if request.weights_key is not None and not is_file and not scheme.takes_architecture:
        raise RobustCliError(f"--weights-key: {request.weights} is not a file of weights")
    found = scheme.find(name, request.weights)
    if not isinstance(found, NamedFile):
        return found
    if found.architecture is None:
        return _of_file(request, found)
    return _with_architecture(request, found.architecture, found)


def _with_architecture(request: ModelRequest, architecture: Mapping[str, Any], file: NamedFile) -> ModelSource:
    value = _overridden(request, "architecture", architecture)
    chosen = checked_member(ARCHITECTURE, value, ("architecture",), HERE)
    if chosen.options.normalize == "per_image":
        raise RobustCliError(
            "architecture.normalize=per_image: weights of a file are normalized per channel; write dataset or none"
        )
    if request.mean is not None and chosen.options.normalize == "none":
        raise RobustCliError("--mean and architecture.normalize=none contradict each other; remove one")
    weights = read_weights(file.path, request.weights_key or file.weights_key)
    return Architecture(chosen, weights if file.unused is None else weights.without(file.unused), file)


def _external(request: ModelRequest, source: ModelSource) -> ExternalModel:
    """Return the model with the defaults of the command line."""
    for override in request.overrides:
        if not any(_is_about(part, override) for part in ("data", "preprocess", "architecture")):
            raise RobustCliError(
                f"override '{override}': {source.name} has no spec; only data, preprocess and, with --architecture, "
                "architecture can be set so"
            )
        if _is_about("architecture", override) and not isinstance(source, Architecture):
            raise RobustCliError(f"architecture: {source.name} has its own, which cannot be overridden")
    mean, std = normalization_of(request)
    facts = source.facts
    images = facts.images if request.data is None else spec_of_images(request.data, facts.size)
    return ExternalModel(
        source=source,
        data=data_of(_overridden(request, "data", images)),
        evaluate={name: checked_member(EVALUATOR, name, (name,), HERE) for name in _DEFAULT},
        mean=mean,
        std=std,
        preprocess=_preprocess(request) or facts.preprocess,
    )


def _preprocess(request: ModelRequest) -> MemberSpec | None:
    """The transformation of images that the user puts before the network, or None."""
    value = _overridden(request, "preprocess", None if request.preprocess is None else {"name": request.preprocess})
    return None if value is None else checked_member(Family("preprocessors"), value, ("preprocess",), HERE)


def normalization_of(request: ModelRequest) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and standard deviation as given by the user.

    Raises:
        RobustCliError: only one of them is given, or they are not numbers, or a deviation is not above 0, or a mean is
            not one of pixels in [0, 1].
    """
    if (request.mean is None) != (request.std is None):
        raise RobustCliError("--mean and --std need each other; give both or none")
    mean, std = _numbers("--mean", request.mean), _numbers("--std", request.std)
    if std is not None and min(std) <= 0:
        raise RobustCliError(f"--std: {request.std}: expected numbers above 0")
    if mean is not None and max(mean) > 1:
        raise RobustCliError(
            f"--mean: {request.mean}: expected numbers for pixels in [0, 1]; divide those for pixels in 0..255 by 255, "
            "also those of --std"
        )
    return mean, std


def _overridden(request: ModelRequest, part: str, value: Any) -> Any:
    """Return architecture or data with its overrides applied; None if neither is given."""
    overrides = [text for text in request.overrides if _is_about(part, text)]
    plain = {} if value is None else {part: value}
    return (parse_yaml(override_text(to_yaml(plain), overrides, HERE), HERE).value or {}).get(part)


def _is_about(part: str, override: str) -> bool:
    return override.partition("=")[0].partition(".")[0] == part


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    values = [parse_scalar(part.strip()) for part in text.split(",")]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise RobustCliError(
            f"{option}: '{shortened(text)}' is not a number, or one for each channel such as 0.49,0.48,0.45"
        )
    return tuple(float(value) for value in values)
