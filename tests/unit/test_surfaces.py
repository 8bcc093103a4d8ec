"""Surfaces of the loss over images and over weights, against NumPy in double precision."""

from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.fgsm import Fgsm
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.diagnostics.input_surface import InputSurface
from robustcli.diagnostics.weight_surface import WeightSurface, moved, random_direction
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise, Noise, derive
from robustcli.threat.threat import ThreatModel

Array = NDArray[Any]
COUNT = 12
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def case() -> tuple[nn.Module, Tensor, Tensor, IndexedNoise]:
    x = 0.3 + 0.4 * images(COUNT, dtype=torch.float64)
    return (
        linear_net(64, 3, dtype=torch.float64).eval(),
        x,
        torch.arange(COUNT) % 3,
        IndexedNoise(0, torch.arange(COUNT)),
    )


def losses(weight: Array, bias: Array, x: Array, y: Array) -> Array:
    logits = x @ weight.T + bias
    values: Array = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    return values


def parts(model: nn.Module) -> tuple[Array, Array]:
    layer = model[1]  # type: ignore[index]
    return layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_plane_of_a_linear_model_is_its_formula(norm: Norm) -> None:
    model, x, y, rng = case()
    threat = ThreatModel(norm, Fraction(1, 10))
    found = InputSurface(half=2, reach=1.0, images=9, batch_size=4)(model, x, y, threat, rng)
    surface = found["surface"]
    assert found["images"] == 9
    assert surface["uphill"] == surface["aside"] == [-1, -0.5, 0, 0.5, 1]
    weight, bias = parts(model)
    flat, labels = x[:9].flatten(1).numpy(), y[:9].numpy()
    logits = flat @ weight.T + bias
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    grad = (shares - np.eye(3)[labels]) @ weight
    u = 0.1 * (np.sign(grad) if norm == "linf" else grad / np.linalg.norm(grad, axis=1, keepdims=True))
    signs = np.where(rng.split("direction").uniform(x).numpy() < 0.5, -1.0, 1.0).reshape(COUNT, -1)[:9]
    v = 0.1 * signs / np.linalg.norm(signs[0], ord=ORDER[norm])
    for i, a in enumerate(surface["uphill"]):
        for j, b in enumerate(surface["aside"]):
            points = (flat + a * u + b * v).clip(0, 1)
            assert surface["loss"][i][j] == pytest.approx(losses(weight, bias, points, labels).mean())
            right = (points @ weight.T + bias).argmax(1) == labels
            assert surface["accuracy"][i][j] == right.mean()
    middle = [row[2] for row in surface["loss"]]
    assert middle == sorted(middle), "uphill is up"
    assert 0.4 < (signs > 0).mean() < 0.6


def test_points_of_the_plane_stay_in_the_box() -> None:
    seen: list[Tensor] = []
    model, x, y, rng = case()
    model.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    InputSurface(half=1, reach=9.0)(model, x, y, ThreatModel("linf", Fraction(1, 10)), rng)
    pixels = torch.cat(seen)
    assert (float(pixels.min()), float(pixels.max())) == (0, 1)


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights() -> None:
    model = conv_net()
    direction = random_direction(model, 0)
    weights = {name: value for name, value in model.named_parameters() if value.dim() > 1}
    assert direction.keys() == weights.keys()
    for name, weight in weights.items():
        for own, drawn in zip(weight.detach().double().numpy(), direction[name].double().numpy(), strict=True):
            assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(own), rel=1e-5)
            assert abs(np.vdot(drawn, own)) < 0.9 * np.vdot(own, own)
    other = random_direction(model, 1)
    assert not any(torch.equal(direction[name], other[name]) for name in direction)


def test_a_filter_of_zeros_stays() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    direction = random_direction(layer, 0)["weight"]
    assert not direction[0].any()
    assert direction[1].all()


def test_weights_are_put_back_bit_for_bit() -> None:
    model = conv_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ways = [random_direction(model, seed) for seed in (0, 1)]
    with moved(model, ways, (1 / 3, 0.1)):
        for name, way in ways[0].items():
            expected = before[name] + way / 3 + 0.1 * ways[1][name]
            assert torch.allclose(model.state_dict()[name], expected, atol=1e-6)
    with suppress(ZeroDivisionError), moved(model, ways, (1 / 3, 0.1)):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_curve_over_weights_is_its_formula() -> None:
    model, x, y, rng = case()
    threat = ThreatModel("linf", Fraction(1, 10))
    found = WeightSurface(points="clean", half=2, images=8, batch_size=3)(model, x, y, threat, rng)
    weight, bias = parts(model)
    (way,) = (tensor.numpy() for tensor in direction_used(model).values())
    assert [row["alpha"] for row in found["curve"]] == [-1, -0.5, 0, 0.5, 1]
    for row in found["curve"]:
        expected = losses(weight + row["alpha"] * way, bias, x[:8].flatten(1).numpy(), y[:8].numpy()).mean()
        assert row["loss"] == pytest.approx(expected)


def direction_used(model: nn.Module, number: int = 0) -> dict[str, Tensor]:
    return random_direction(model, derive(0, "direction", number))


def test_two_directions_span_a_surface_whose_axes_are_curves() -> None:
    model, x, y, rng = case()
    threat = ThreatModel("linf", Fraction(1, 10))
    surface = WeightSurface(directions=2, points="clean", half=1)(model, x, y, threat, rng)["surface"]
    curve = WeightSurface(points="clean", half=1)(model, x, y, threat, rng)["curve"]
    assert [row[1] for row in surface["loss"]] == pytest.approx([row["loss"] for row in curve])
    weight, bias = parts(model)
    first, second = (direction_used(model, number)["1.weight"].numpy() for number in (0, 1))
    corner = losses(weight + first - second, bias, x.flatten(1).numpy(), y.numpy()).mean()
    assert surface["loss"][2][0] == pytest.approx(corner)


@dataclass(frozen=True)
class Counted(Attack):
    """FGSM that records the weights it sees."""

    seen: list[float]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        self.seen.append(float(model[1].weight.detach().sum()))  # type: ignore[index]
        return Fgsm()(model, x, y, threat, rng)


@pytest.mark.parametrize(("points", "calls"), [("clean", 0), ("held", 1), ("regenerated", 5)])
def test_adversarial_images_are_made_at_the_stated_place(points: Any, calls: int) -> None:
    model, x, y, rng = case()
    seen: list[float] = []
    diagnostic = replace(WeightSurface(points=points, half=2), attack=Counted(seen))
    curve = diagnostic(model, x, y, ThreatModel("linf", Fraction(1, 10)), rng)["curve"]
    assert len(seen) == len(set(seen)) == calls
    own = float(model[1].weight.detach().sum())  # type: ignore[index]
    assert (own in seen) == (calls > 0)
    clean = WeightSurface(points="clean", half=2)(model, x, y, ThreatModel("linf", Fraction(1, 10)), rng)["curve"]
    if calls:
        # FGSM is nearly exact here: new examples have at least the loss of held ones, and both more than clean images.
        assert all(row["loss"] > plain["loss"] for row, plain in zip(curve, clean, strict=True) if row["alpha"] == 0)
    else:
        assert curve == clean


def test_regenerated_images_are_worse_than_held_ones() -> None:
    model, x, y, rng = case()
    curves = [
        replace(WeightSurface(points=points, half=2), attack=Fgsm())(
            model, x, y, ThreatModel("linf", Fraction(1, 10)), rng
        )["curve"]
        for points in ("regenerated", "held")
    ]
    at_ends = [(anew["loss"], held["loss"]) for anew, held in zip(*curves, strict=True) if anew["alpha"]]
    assert all(anew > held for anew, held in at_ends)
