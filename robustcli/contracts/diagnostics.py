"""Contract of every diagnostic."""

import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from robustcli.contracts.attacks import RADII
from robustcli.contracts.model_state import Failing, found_again
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.diagnostics import Diagnostic
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

_COUNT = 8


def _network() -> nn.Sequential:
    """A network with varying confidences; an untrained one has equal ones."""
    model = conv_net().eval()
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        for parameter in model[-1].parameters():
            parameter.mul_(8)
    return model


def _asked(diagnostic: Diagnostic, model: nn.Module, norm: Norm) -> dict[str, Any]:
    x, y = images(_COUNT), labels(_COUNT)
    # All but the first are classified correctly.
    with torch.no_grad():
        y[1:] = _network()(x)[1:].argmax(1)
    return diagnostic(model, x, y, ThreatModel(norm, RADII[norm] / 4), IndexedNoise(0, torch.arange(_COUNT)))


def numbers_in(value: Any) -> Iterator[float]:
    """Yield every number of plain data in order; text as its length, None as -1."""
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif value is None:
        yield -1.0
    else:
        yield float(len(value)) if isinstance(value, str) else float(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))


def returns_plain_data(diagnostic: Diagnostic, norm: Norm) -> None:
    """Results survive JSON; numbers are finite, accuracies fractions; curves, surfaces and tables have their form."""
    found = _asked(diagnostic, _network(), norm)
    assert _is_plain(found)
    assert json.loads(json.dumps(found)) == found
    tables = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    for table in tables:
        assert all(list(row) == list(table[0]) for row in table)
        for row in table:
            assert all(0 <= value <= 1 for key, value in row.items() if key.endswith("accuracy") and value is not None)
    if "curve" in found:
        abscissa = [row[next(iter(row))] for row in found["curve"]]
        assert abscissa == sorted(set(abscissa))
    if "surface" in found:
        parts = found["surface"].values()
        rows, columns = (part for part in parts if not isinstance(part[0], list))
        grids = [part for part in parts if isinstance(part[0], list)]
        assert grids
        for grid in grids:
            assert [len(row) for row in grid] == [len(columns)] * len(rows)


def repeats_itself(diagnostic: Diagnostic, norm: Norm) -> None:
    """Equal noise gives equal results, and the global generator does not change."""
    state = torch.get_rng_state()
    first = _asked(diagnostic, _network(), norm)
    assert torch.equal(torch.get_rng_state(), state), "moved the global generator"
    assert _asked(diagnostic, _network(), norm) == first


def leaves_the_network_alone(diagnostic: Diagnostic, norm: Norm) -> None:
    """Weights, buffers, gradients, modes, requires_grad and hooks do not change, also if a forward fails."""
    model = _network()
    with found_again(model):
        _asked(diagnostic, model, norm)
    for at in (1, 2, 3, 5):
        failing = Failing(_network(), at).eval()
        with found_again(failing):
            _asked(diagnostic, failing, norm)


def does_not_depend_on_its_batches(diagnostic: Diagnostic, norm: Norm) -> None:
    """Batches of another size give the same results."""
    if not is_dataclass(diagnostic) or "batch_size" not in {item.name for item in fields(diagnostic)}:
        return
    both = (diagnostic, replace(diagnostic, batch_size=3))
    first, second = (torch.tensor([*numbers_in(_asked(each, _network(), norm))]) for each in both)
    assert torch.allclose(first, second, rtol=1e-3, atol=1e-5)
