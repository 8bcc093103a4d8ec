"""From what a user names to what can be worked on: a network, its images and the threat, ready on the device."""

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch

from robustcli.data import Data
from robustcli.data.loading import load_data
from robustcli.errors import RobustCliError
from robustcli.models.find import Wanted
from robustcli.models.sources import Built, Subject, Terms
from robustcli.registry.types import exact_text
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import describe_device
from robustcli.specs.check import checked
from robustcli.specs.settings import ThreatSettings
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.runs import SCHEMA, provenance
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network with its images and a threat, on a device.

    Args:
        wanted: how the user named it.
        subject: what that is.
    """

    wanted: Wanted
    subject: Subject
    built: Built
    data: Data
    threat: ThreatModel
    device: torch.device

    def to_json(self) -> dict[str, Any]:
        """The head of every file about it: what it is, under which threat, on which images, by which program."""
        return {
            "schema": SCHEMA,
            **self.subject.origin,
            "subject": asdict(self.wanted),
            "network": self.built.to_json(),
            "threat": {"norm": self.threat.norm, "eps": exact_text(self.threat.eps)},
            "data": {"digest": self.data.digest, "sizes": self.data.sizes, "decode": self.data.decode},
            "provenance": provenance(describe_device(self.device)),
            "notes": self.built.notes,
        }


def opened(wanted: Wanted, subject: Subject, threat: ThreatModel, device: torch.device) -> Opened:
    """Read the images, then build the network for them: the expensive part, after everything was checked.

    Raises:
        RobustCliError: the images cannot be read, or the network does not take them.
    """
    data = load_data(subject.terms.data, device)
    keep_freed_memory()
    built = subject.build(data, device)
    return Opened(wanted=wanted, subject=subject, built=built, data=data, threat=threat, device=device)


def threat_of(
    terms: Terms, norm: str | None, eps: str | None, *, is_attacked: bool = True, where: str = "robust eval"
) -> ThreatModel:
    """The threat of the subject, as far as the user does not say another.

    Args:
        is_attacked: whether anything needs a threat; otherwise one of radius 0 will do.
        where: the command, for messages.
    """
    asked = {"norm": norm, "eps": None if eps is None else parse_scalar(eps)}
    given = {key: value for key, value in asked.items() if value is not None}
    known: dict[str, Any] = {} if terms.threat is None else {"norm": terms.threat.norm, "eps": terms.threat.eps}
    if not known and not is_attacked:
        known = {"norm": "linf", "eps": 0}
    missing = [f"--{key}" for key in asked if key not in known and key not in given]
    if missing:
        raise RobustCliError(
            f"{' and '.join(missing)}: {terms.name} does not say what it is to resist; write --norm linf --eps 8/255, "
            "or what is usual for these images"
        )
    settings = checked(lambda checker: checker.settings(ThreatSettings, {**known, **given}, ("threat",)), where)
    return ThreatModel(settings.norm, Fraction(settings.eps))
