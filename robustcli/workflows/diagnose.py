"""`robust diagnose`: network -> images -> diagnostics."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.crafting import crafting
from robustcli.diagnostics import Diagnostic
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.evaluate import error_means_invalid
from robustcli.evaluation.first_images import sorted_by_class
from robustcli.evaluation.noted_warnings import noted_warnings
from robustcli.evaluation.preflight import preflight
from robustcli.evaluation.restore import settled
from robustcli.models.find import find_model
from robustcli.models.open import open_model, threat_of
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.registry.types import Family, exact_text
from robustcli.runtime.device import choose_device
from robustcli.specs.check import Checker, checked
from robustcli.specs.spec import override_text
from robustcli.specs.yamlfile import parse_yaml, to_yaml
from robustcli.store.results import ModelRequest
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

_HERE = "robust diagnose"


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """The result of one diagnostic.

    Args:
        settings: its settings, as plain data.
        found: its numbers, in the forms that diagnostics/__init__.py describes.
        warnings: raised while it ran.
    """

    settings: Any
    found: dict[str, Any]
    seconds: float
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Results of diagnostics, with the conditions.

    Args:
        header: network, threat model, images and software, as plain data.
        notes: about the network.
        seed: of the noise.
        examples: number of images.
        diagnostics: by name.
    """

    header: Mapping[str, Any]
    threat: ThreatModel
    notes: Sequence[str]
    seed: int
    examples: int
    diagnostics: dict[str, Diagnosed]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        results = {name: asdict(result) for name, result in self.diagnostics.items()}
        return {**self.header, "seed": self.seed, "examples": self.examples, "diagnostics": results}


def diagnose(
    network: ModelRequest,
    names: Sequence[str],
    *,
    eps: str | None,
    norm: str | None,
    examples: int | None,
    seed: int | None,
    device: str,
    begins: Callable[[str], None],
) -> Iterator[Diagnosis]:
    """Run every requested diagnostic on a network, and yield the results so far after each one.

    None means the value that comes with the network.

    Args:
        network: the network and the images; its overrides may also set parameters of diagnostics, as in
            `eps_curve.batch_size=50`.
        names: diagnostics, in the order of the results.
        eps, norm: threat model.
        examples: use the first N test images.
        seed: seed of the noise.
        device: auto, cpu, cuda or cuda:i.
        begins: called with the name of each diagnostic before it runs.
    """
    own = [text for text in network.overrides if _diagnostic_of(text) is not None]
    chosen = choose(names, own)
    wanted = network.model_copy(update={"overrides": tuple(text for text in network.overrides if text not in own)})
    subject = find_model(wanted)
    defaults = subject.defaults
    threat = threat_of(defaults, norm, eps, where=_HERE)
    diagnostics = {name: instantiate(choice) for name, choice in chosen.items()}
    case = open_model(wanted, subject, threat, choose_device(device))
    x, y = case.data.evaluation("test", examples)
    seed = defaults.seed if seed is None else seed
    diagnosis = Diagnosis(
        # All overrides as the user wrote them, including those of diagnostics.
        header={**case.to_json(), "subject": network.to_json()},
        threat=threat,
        notes=[*case.loaded.notes, *sorted_by_class(case.data, examples)],
        seed=seed,
        examples=len(x),
        diagnostics={},
    )
    for name, diagnostic in diagnostics.items():
        begins(name)
        result = look(diagnostic, case.loaded.network, x, y, threat, seed)
        diagnosis = replace(diagnosis, diagnostics={**diagnosis.diagnostics, name: result})
        yield diagnosis


def choose(names: Sequence[str], overrides: Sequence[str]) -> dict[str, MemberSpec]:
    """Return diagnostics by name, with parameters set by dotted overrides.

    Raises:
        RobustCliError: a name is unknown, a parameter is wrong, or belongs to a diagnostic that was not named.
    """
    known = catalog("diagnostics")
    if not names:
        raise RobustCliError(f"--with: names no diagnostic; expected one or more of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise RobustCliError(f"--with: there is no diagnostic '{name}'{suggest(name, known)}")
    for text in overrides:
        if _diagnostic_of(text) not in names:
            raise RobustCliError(f"override '{text}': add --with {_diagnostic_of(text)}, or remove the override")
    written = override_text(to_yaml({name: {"name": name} for name in names}), overrides, _HERE)
    values = parse_yaml(written, _HERE).value

    def check(checker: Checker) -> dict[str, MemberSpec]:
        return {name: checker.chosen(Family("diagnostics"), values[name], (name,)) for name in values}

    chosen: dict[str, MemberSpec] = checked(check, _HERE)
    return chosen


def look(diagnostic: Diagnostic, network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Diagnosed:
    """Run one diagnostic under the conditions of an evaluation: eval mode, no gradients of weights, single precision.

    Args:
        network: pixels in [0, 1] -> logits, in eval mode.
        x, y: images and labels, on the network's device.

    Raises:
        EvaluationError: the result would be meaningless; the message says why.
    """
    begun = time.perf_counter()
    with noted_warnings() as caught, settled(network, x.device.type), crafting(network, "eval"), error_means_invalid():
        torch.manual_seed(derive(seed, "diagnose"))
        preflight(network, x, y, threat)
        found = diagnostic(network, x, y, threat, IndexedNoise(seed, torch.arange(len(x), device=x.device)))
    return Diagnosed(
        settings=settings_of(diagnostic),
        found=found,
        seconds=time.perf_counter() - begun,
        warnings=list(dict.fromkeys(caught)),
    )


def settings_of(value: Any) -> Any:
    """Settings as plain data; a part, such as an attack, has its class under "kind"."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = {item.name: settings_of(getattr(value, item.name)) for item in fields(value)}
        return {"kind": type(value).__name__, **plain}
    if isinstance(value, tuple | list):
        return [settings_of(item) for item in value]
    if isinstance(value, Mapping):
        return {key: settings_of(item) for key, item in value.items()}
    return exact_text(value) if isinstance(value, Fraction) else value


def _diagnostic_of(override: str) -> str | None:
    """Return the diagnostic that an override belongs to, if any."""
    name = override.partition("=")[0].partition(".")[0]
    return name if name in catalog("diagnostics") else None
