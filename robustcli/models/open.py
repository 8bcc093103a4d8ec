"""Open the model that a user names, with images and threat model, on a device."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from robustcli.data.splits import Data
from robustcli.errors import RobustCliError
from robustcli.models.model import EvaluationDefaults, LoadedModel, Model, test_images
from robustcli.registry.types import exact_text
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import describe_device
from robustcli.specs.check import checked_settings
from robustcli.specs.settings import ThreatSettings
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.provenance import this_session
from robustcli.store.results import ModelRequest
from robustcli.store.runs import SCHEMA
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A network with images and threat model, on a device.

    Args:
        request: the user's request.
        model: the model that was found.
    """

    request: ModelRequest
    model: Model
    loaded: LoadedModel
    data: Data
    threat: ThreatModel
    device: torch.device

    def to_json(self) -> dict[str, Any]:
        """Header of stored files: network, threat model, images and software."""
        return {
            "schema": SCHEMA,
            **self.model.origin,
            "subject": self.request.to_json(),
            "network": self.loaded.to_json(),
            "threat": {"norm": self.threat.norm, "eps": exact_text(self.threat.eps)},
            "data": {"digest": self.data.digest, "sizes": self.data.sizes.to_json(), "decode": self.data.decode},
            "provenance": this_session(describe_device(self.device)).to_json(),
            "notes": self.loaded.notes,
        }


def open_model(request: ModelRequest, model: Model, threat: ThreatModel, device: torch.device) -> OpenedModel:
    """Read the images, then build the network for them; all cheap checks come before.

    Raises:
        RobustCliError: the images cannot be read, or the network does not accept them.
    """
    data = test_images(model.defaults, device)
    keep_freed_memory()
    loaded = model.load(data, device)
    return OpenedModel(request=request, model=model, loaded=loaded, data=data, threat=threat, device=device)


def threat_of(
    defaults: EvaluationDefaults,
    norm: str | None,
    eps: str | None,
    *,
    is_attacked: bool = True,
    where: str = "robust eval",
) -> ThreatModel:
    """Return the default threat model, changed by options of the user.

    Args:
        is_attacked: whether an evaluation needs a threat model; if not, the radius is 0.
        where: the command, for messages.
    """
    asked = {"norm": norm, "eps": None if eps is None else parse_scalar(eps)}
    given = {key: value for key, value in asked.items() if value is not None}
    known: dict[str, Any] = (
        {} if defaults.threat is None else {"norm": defaults.threat.norm, "eps": defaults.threat.eps}
    )
    if not known and not is_attacked:
        known = {"norm": "linf", "eps": 0}
    if is_attacked and eps is None and known and norm not in (None, known["norm"]):
        radius = exact_text(known["eps"])
        raise RobustCliError(
            f"--norm {norm}: write --eps too; the radius {radius} of {defaults.name} is for {known['norm']}"
        )
    missing = [f"--{key}" for key in asked if key not in known and key not in given]
    if missing:
        raise RobustCliError(
            f"{' and '.join(missing)}: {defaults.name} has no threat model; write --norm linf --eps 8/255, "
            "or the usual one for these images"
        )
    settings = checked_settings(ThreatSettings, {**known, **given}, ("threat",), where)
    return ThreatModel(settings.norm, Fraction(settings.eps))
