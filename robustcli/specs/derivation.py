"""The spec that trains from random weights the network that a search found."""

from collections.abc import Mapping
from typing import Any

from robustcli.registry.catalog import describe
from robustcli.specs.check import to_plain
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import to_yaml

# Defense for the found network if the defense of the search trains only a supernet.
_DEFENSE = "pgd_at"


def derived_spec(spec: ExperimentSpec, architecture: Mapping[str, Any]) -> str:
    """Return the text of a spec: as in the search, except for the architecture and a defense without a supernet.

    Args:
        spec: spec of the search.
        architecture: architecture that it found, as specs name it.
    """
    plain = spec.to_plain()
    plain["name"] = f"{spec.name}_derived"
    plain["architecture"] = {**architecture, **to_plain(spec.architecture.options)}
    plain["train"]["start_from"] = None
    plain.pop("claim", None)
    if spec.defense.member.trains:
        member = describe("defenses", _DEFENSE)
        shared = {**member.parameters, **member.replaceable}
        own = {key: value for key, value in plain["defense"].items() if key in shared}
        plain["defense"] = {"name": _DEFENSE, **own}
    text = ExperimentSpec.parse(to_yaml(plain), "the derived spec").to_yaml()
    return (
        f"# What the search {spec.name} found with seed {spec.seed}, to be trained from random weights.\n"
        "# Run:    robust train THIS_FILE\n"
        "# As wide and as deep as the supernet, and trained as long; published networks are larger, such as with\n"
        "# architecture.width=64 architecture.cells=20 train.epochs=200 train.lr=0.1.\n"
        f"{text}"
    )
