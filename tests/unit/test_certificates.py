"""Certified lower bounds: sound against samples and attacks, exact where there is a closed form, refused elsewhere."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import noise, predictions
from scipy.special import ndtri
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.build import builder
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.diagnostics.interval_bounds import IntervalBounds
from robustcli.diagnostics.randomized_smoothing import RandomizedSmoothing
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluation.consistency import check_derived
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluation.journal import FolderJournal
from robustcli.evaluators import AttackContext, Certificate, Certifier, Evaluator, Stage
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.interval_bounds import IntervalBounds as IntervalBoundsEvaluator
from robustcli.evaluators.intervals import Interval, certified
from robustcli.evaluators.other_threat import Under
from robustcli.evaluators.randomized_smoothing import RandomizedSmoothing as SmoothingEvaluator
from robustcli.evaluators.smoothing import Smoothing
from robustcli.evaluators.worst_case import WorstCase
from robustcli.registry.catalog import catalog
from robustcli.statistics import most_by_chance
from robustcli.store.evaluations import Evaluation, broken_certificates, parse_evaluation
from robustcli.threat.threat import ThreatModel

# Intervals


@pytest.mark.parametrize("name", ["small_cnn", "preact_resnet18", "resnet18", "wide_resnet", "vgg11", "senet18"])
def test_intervals_contain_what_the_network_computes(name: str) -> None:
    member = catalog("architectures")[name]
    network = builder(member, member.smoke)(ImageShape(3, 32, 32, 10)).eval()
    x = images(2, 3, 32)
    with torch.no_grad():
        point = network(Interval(x, x))
        torch.testing.assert_close(point.low, network(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(point.high, network(x), rtol=1e-3, atol=1e-4)
        box = network(Interval((x - 0.002).clamp(0, 1), (x + 0.002).clamp(0, 1)))
        assert (box.high > box.low).all()
        for seed in range(5):
            signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).sign()
            logits = network((x + 0.002 * signs).clamp(0, 1))
            slack = 1e-3 * logits.abs().max()
            assert (logits >= box.low - slack).all()
            assert (logits <= box.high + slack).all()


def test_a_linear_network_is_bounded_exactly() -> None:
    """The smallest margin over the ball is the margin less eps times the sum of the magnitudes."""
    model, x = linear_net(64, 2), 0.3 + 0.4 * images(40)
    weight = (model[1].weight[0] - model[1].weight[1]).detach()  # type: ignore[index]
    bias = (model[1].bias[0] - model[1].bias[1]).detach()  # type: ignore[index]
    margins = x.flatten(1) @ weight + bias
    y = (margins < 0).long()
    eps = float((margins.abs() / weight.abs().sum()).median())
    # Two logits are bounded apart, so the interval of their difference is that of all magnitudes.
    apart = sum(one.abs() for one in model[1].weight.detach()).sum()  # type: ignore[index]
    found = IntervalBounds(radii=(eps,))(model, x, y, ThreatModel("linf", "0.1"), noise(40))
    expected = float((margins.abs() > eps * apart).double().mean())
    assert found["curve"][0]["certified_accuracy"] == pytest.approx(expected, abs=1 / 40)


def test_no_certified_image_is_broken_by_an_attack() -> None:
    model, x = conv_net().eval(), images(40)
    with torch.no_grad():
        y = model(x).argmax(1)
    threat = ThreatModel("linf", "0.002")
    is_certified = certified(model, x, y, threat.radius, 40)
    assert 0 < int(is_certified.sum()) < 40
    x_adv = Pgd(steps=20, keep="fooled")(model, x, y, threat, noise(40))
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == y)[is_certified].all()


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.SiLU(), "'silu'"),
        (nn.LeakyReLU(-0.1), "a leaky ReLU with a negative slope"),
        (nn.ELU(-1), "an ELU with a negative alpha"),
        (nn.BatchNorm2d(1, track_running_stats=False), "a batch norm without running statistics"),
        (nn.LayerNorm(8), "'layer_norm'"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(layer: nn.Module, what: str) -> None:
    model = nn.Sequential(layer, *linear_net(64)).eval()
    x = images(3)
    with pytest.raises(EvaluationError, match=f"interval_bounds: this network uses {what}"):
        IntervalBounds()(model, x, torch.zeros(3, dtype=torch.long), ThreatModel("linf", "0.1"), noise(3))


class Seen(nn.Module):
    """A linear network of images that a function has changed."""

    def __init__(self, see: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.see = linear_net(64), see

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.see(x))
        return logits


def change_in_place(x: Any) -> Any:
    y = x.clone()
    y.mul_(-5)
    y.add_(3).div_(2)
    torch.nn.functional.leaky_relu(y, 0.5, inplace=True)
    # Another name for the same values.
    z = y
    y -= x
    y *= 0.5
    return z


@pytest.mark.parametrize(
    "see",
    [
        lambda x: 1 - x,
        lambda x: torch.ones(1, 8, 8) - x,
        lambda x: torch.sub(2 * x, x, alpha=2),
        lambda x: x - 1,
        change_in_place,
        lambda x: 3 * x if x.ndim == 4 else x,
        lambda x: x.to(torch.int64).to(x.dtype),
    ],
)
def test_what_changes_the_images_is_bounded(see: Callable[[Any], Any]) -> None:
    model, x = Seen(see).eval(), images(5)
    with torch.no_grad():
        box = model(Interval((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)))
        for seed in range(20):
            signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).sign()
            logits = model((x + 0.1 * signs).clamp(0, 1))
            assert (box.low <= logits + 1e-5).all()
            assert (logits <= box.high + 1e-5).all()


@pytest.mark.parametrize("see", [lambda x: x**2, lambda x: x * (x > 0), abs, lambda x: 1 / x, lambda x: x.mT.mT])
def test_operators_that_intervals_lack_are_one_error(see: Callable[[Any], Any]) -> None:
    with pytest.raises(EvaluationError, match="interval_bounds: this network cannot be bounded: "):
        certified(Seen(see).eval(), images(2), torch.zeros(2, dtype=torch.long), 0.1, 2)


# Smoothing


def linear_case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Two classes, and the true l2 distance of every image to the boundary, which smoothing does not move."""
    model, x = linear_net(64, 2), images(12)
    weight = (model[1].weight[0] - model[1].weight[1]).detach()  # type: ignore[index]
    with torch.no_grad():
        model[1].bias[0] -= (x.flatten(1) @ weight).mean() + model[1].bias[0] - model[1].bias[1]  # type: ignore[index]
        logits = model(x)
    return model, x, logits.argmax(1), (logits[:, 0] - logits[:, 1]).abs() / weight.norm()


def smoothed(diagnostic: RandomizedSmoothing, threat: ThreatModel) -> dict[str, Any]:
    model, x, y, _ = linear_case()
    return diagnostic(model, x, y, threat, noise(len(x)))


def test_certified_radii_stay_below_the_true_distance_and_come_near_it() -> None:
    distance = linear_case()[3]
    sigma = float(distance.mean())
    fine = [float(at) for at in torch.linspace(0, 2 * float(distance.max()), 200)]
    diagnostic = RandomizedSmoothing(sigma=sigma, samples=4000, selection=50, radii=tuple(fine))
    found = smoothed(diagnostic, ThreatModel("l2", "0.01"))
    for row in found["curve"]:
        assert row["certified_accuracy"] <= float((distance >= row["radius"]).double().mean()) + 1e-9
    assert found["average_certified_radius"] > 0.7 * float(distance.mean())
    assert found["accuracy"] + found["abstained"] / len(distance) == pytest.approx(1)


@pytest.mark.parametrize(("norm", "times"), [("l2", 1.0), ("l1", 1.0), ("linf", 8.0)])
def test_a_certificate_covers_the_threat_set(norm: Any, times: float) -> None:
    found = smoothed(RandomizedSmoothing(samples=100), ThreatModel(norm, "0.25"))
    assert found["threat_needs_radius"] == pytest.approx(0.25 * times)


def test_the_radius_is_that_of_the_paper() -> None:
    """If all n draws agree, the lower bound of the probability is alpha to the power of 1/n."""
    diagnostic = RandomizedSmoothing(sigma=0.5, samples=100_000, alpha=0.001)
    assert diagnostic.smoothing.radius(100_000) == pytest.approx(0.5 * ndtri(0.001 ** (1 / 100_000)), rel=1e-6)
    assert diagnostic.smoothing.radius(50_000) == -1
    assert RandomizedSmoothing(samples=10).smoothing.radius(6) == -1
    # Without any chance of an error nothing can be certified from samples.
    assert RandomizedSmoothing(alpha=0).smoothing.radius(1000) == -1


# Evaluators


def judged(evaluator: Evaluator, model: nn.Module, threat: ThreatModel, count: int = 40) -> Result:
    x = images(count)
    with torch.no_grad():
        y = model(x).argmax(1)
    return evaluate("certified", {}, evaluator, model, x, y, threat, 0)


def test_an_evaluation_has_the_certified_bound_next_to_that_of_the_attack() -> None:
    model, threat = conv_net().eval(), ThreatModel("linf", "0.003")
    result = judged(IntervalBoundsEvaluator(steps=10), model, threat)
    assert result.certified is not None
    x = images(40)
    with torch.no_grad():
        y = model(x).argmax(1)
    expected = IntervalBounds(radii=(0.003,))(model, x, y, threat, noise(40))["curve"][0]["certified_accuracy"]
    assert result.certified.accuracy == pytest.approx(expected)
    assert 0 < result.certified.accuracy < result.accuracy < 1
    assert (result.verdict, result.certified.abstained, result.certified.is_smoothed) == ("TRUSTED", None, False)
    assert Evaluation.model_validate_json(json.dumps(result.to_json())).certified == result.certified


def test_changed_certificates_are_noticed() -> None:
    result = judged(IntervalBoundsEvaluator(steps=2), conv_net().eval(), ThreatModel("linf", "0.003"))
    stored = json.loads(json.dumps(result.to_json()))
    assert list(check_derived(result, stored)) == []
    for changes, told in (
        ({"images": "1" * 40}, ["certified.accuracy: the", "certified.interval: the"]),
        ({"images": stored["certified"]["images"][:-1]}, ["certified: the result says 39 images; 40"]),
        ({"accuracy": 1.0}, ["certified.accuracy: the result says 1.0; its images give"]),
    ):
        changed = {**stored, "certified": {**stored["certified"], **changes}}
        problems = list(check_derived(parse_evaluation(changed, Path("changed.json")), changed))
        assert [text for text in told if not any(text in problem for problem in problems)] == [], problems


def test_a_network_that_cannot_be_bounded_is_refused_in_one_sentence() -> None:
    model = nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(64, 10)).eval()
    with pytest.raises(EvaluationError, match="INVALID: interval_bounds: this network uses 'silu', which cannot be"):
        judged(IntervalBoundsEvaluator(), model, ThreatModel("linf", "0.01"))


class Credulous(IntervalBoundsEvaluator):
    """Certifies every image."""

    @property
    def certifier(self) -> Certifier:
        class Everything(Certifier):
            def certify(self, model: Any, x: Tensor, y: Any, threat: Any, rng: Any) -> Certificate:
                return Certificate(torch.ones(len(x), dtype=torch.bool))

        return Everything()


def test_certified_images_that_an_attack_breaks_are_suspect() -> None:
    threat = ThreatModel("linf", "0.02")
    result = judged(Credulous(), conv_net().eval(), threat)
    assert result.correct < 40
    assert result.suspicions == [
        f"{40 - result.correct} images are certified, and an attack broke them: certificate or attack is wrong, and "
        "neither bound can be trusted; please report it"
    ]
    honest = judged(Attacked(attack=Pgd(steps=20, keep="fooled")), conv_net().eval(), threat)
    (text,) = broken_certificates({"bounds": result, "pgd": honest})
    assert text == f"bounds: SUSPECT: certifies {40 - honest.correct} images that pgd breaks; one of the two is wrong"
    assert not list(broken_certificates({"bounds": judged(IntervalBoundsEvaluator(), conv_net().eval(), threat)}))


def test_certificates_of_an_interrupted_evaluation_are_not_computed_again(tmp_path: Path) -> None:
    """They may take hours. With another batch size they are other parts, and computed again."""
    certified_rows: list[int] = []

    class Dying(Certifier):
        left = 3

        def certify(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Any) -> Certificate:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            certified_rows.extend(rng.index.tolist())
            return Certificate(rng.index % 3 == 0, abstained=1, chance=0.25)

    @dataclass(frozen=True, kw_only=True)
    class Counted(Evaluator):
        batch_size: int = 6
        prover: Certifier = field(default_factory=Dying)

        @property
        def certifier(self) -> Certifier:
            return self.prover

        def stages(self, context: AttackContext) -> list[Stage]:
            return []

    model, x = conv_net().eval(), images(20)
    y = predictions(model, x)

    def found(evaluator: Evaluator) -> Result:
        journal = FolderJournal.open(tmp_path / "journal", {})
        return evaluate("counted", {}, evaluator, model, x, y, ThreatModel("linf", "0.02"), 0, journal=journal)

    with pytest.raises(KeyboardInterrupt):
        found(Counted())
    assert certified_rows == [*range(18)]
    certificate = found(Counted()).certified
    assert certified_rows == [*range(20)]
    assert certificate is not None
    assert certificate.images == "".join("1" if number % 3 == 0 else "0" for number in range(20))
    assert (certificate.abstained, certificate.chance) == (4, 0.25)
    again = Dying()
    again.left = 20
    assert found(Counted(batch_size=5, prover=again)).certified.images == certificate.images  # type: ignore[union-attr]
    assert certified_rows[20:] == [*range(20)]
    (tmp_path / "journal" / "certificates.00000000.npz").write_bytes(b"PK")
    with pytest.raises(RobustCliError, match=r"certificates\.00000000\.npz: cannot be read .* remove this file"):
        found(Counted())


class Halves(nn.Module):
    """Two classes on both sides of a plane through gray, at which distances are those of the mean to 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        lead = (x - 0.5).flatten(1).sum(1) / x[0].numel() ** 0.5
        return torch.stack([lead, -lead], 1)


@pytest.mark.slow
def test_certified_images_that_lose_a_close_vote_are_no_contradiction() -> None:
    """All certificates are true, and at the worst points the class has a small majority of all votes."""
    count, threat = 60, ThreatModel("l2", "0.2")
    distances = 0.25 + 0.05 * torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    x, y = (0.5 + distances / 4).expand(-1, 1, 4, 4).clone(), torch.zeros(count, dtype=torch.long)
    evaluator = SmoothingEvaluator(sigma=0.5, selection=20, samples=1000, alpha=0.001, steps=8, gradients=2)
    result = evaluate("smoothed", {}, evaluator, Halves().eval(), x, y, threat, 0)
    assert result.certified is not None
    pairs = list(zip(result.certified.images, result.survivors, strict=True))
    assert pairs.count(("1", "0")) > most_by_chance(count, 0.001)
    assert not any("certified" in text for text in result.suspicions or ())


@pytest.mark.slow
def test_a_wrong_certificate_of_a_smoothed_network_is_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Smoothing, "radius", lambda self, votes: 10.0)
    threat = ThreatModel("l2", "1.5")
    evaluator = SmoothingEvaluator(sigma=0.25, selection=20, samples=20, alpha=0.01, steps=10, gradients=4)
    result = judged(evaluator, conv_net().eval(), threat, 20)
    assert result.certified is not None
    assert "1" in result.certified.images
    assert any("are certified, and an attack broke them" in text for text in result.suspicions or ())


@pytest.mark.slow
def test_a_smoothed_network_is_certified_attacked_and_abstains() -> None:
    model = conv_net().eval()
    evaluator = SmoothingEvaluator(sigma=0.3, selection=60, samples=100, alpha=0.01, steps=4, gradients=4)
    threat = ThreatModel("l2", "0.05")
    result = judged(evaluator, model, threat, 20)
    assert result.certified is not None
    with torch.no_grad():
        y = model(images(20)).argmax(1)
    found = RandomizedSmoothing(sigma=0.3, selection=60, samples=100, alpha=0.01)(
        model, images(20), y, threat, noise(20)
    )
    assert result.certified.accuracy == pytest.approx(found["certified_accuracy"])
    assert result.certified.abstained == found["abstained"] > 0
    assert result.certified.is_smoothed
    assert result.certified.chance == 0.01
    assert 0 < result.certified.accuracy <= result.accuracy
    assert result.verdict == "TRUSTED"


def test_certificates_do_not_stand_inside_other_evaluators() -> None:
    inner = IntervalBoundsEvaluator()
    with pytest.raises(RobustCliError, match="worst_case: joins attacks"):
        WorstCase(members=[inner])
    with pytest.raises(RobustCliError, match="other_threat: joins attacks"):
        Under(norm="l2", eps=Fraction(1), evaluator=inner)
