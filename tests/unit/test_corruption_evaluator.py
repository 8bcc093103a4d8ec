"""The evaluator corruptions: noise depends on the image number, there is no search, and the verdict fits."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustcli
from robustcli.contracts.evaluators import gathered
from robustcli.data.corruption_kinds import corrupted
from robustcli.errors import RobustCliError
from robustcli.evaluation.wording import threats_of, verdict
from robustcli.evaluators.corruptions import Corruption, Corruptions
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(1, 100))
KINDS = ("gaussian_noise", "contrast", "fog")


class Brightness(nn.Module):
    """Logits of an image by its mean brightness: class 0 is dark, class 9 bright."""

    def forward(self, x: Tensor) -> Tensor:
        return -((x.mean((1, 2, 3))[:, None] * 10 - torch.arange(10) - 0.5) ** 2)


def photos(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 0.2 + 0.6 * torch.rand((count, 1, 1, 1), generator=generator)
    x = (x + 0.1 * torch.rand((count, 3, 16, 16), generator=generator)).clamp(0, 1)
    return x, Brightness()(x).argmax(1)


def test_each_image_gets_the_corruption_of_its_number() -> None:
    x, y = photos(40)
    corruption = Corruption(tuple((kind, severity) for kind in KINDS for severity in (1, 3)))
    numbers = torch.arange(40)
    found = corruption(Brightness(), x, y, THREAT, IndexedNoise(5, numbers))
    part = corruption(Brightness(), x[[7, 3]], y[[7, 3]], THREAT, IndexedNoise(5, numbers[[7, 3]]))
    assert torch.equal(part, found[[7, 3]])
    assert not torch.equal(corruption(Brightness(), x, y, THREAT, IndexedNoise(6, numbers)), found)
    drawn = set()
    for number in range(40):
        kind, severity = corruption.cells[np.random.default_rng(derive(5, "corruption", number)).integers(6)]
        drawn.add((kind, severity))
        source = np.random.default_rng(derive(5, "corruption", kind, severity, number))
        expected = corrupted(x[number : number + 1].double().numpy(), kind, severity, [source])
        torch.testing.assert_close(found[number : number + 1], torch.from_numpy(expected).float())
    assert drawn == set(corruption.cells)


def test_an_image_counts_if_it_is_right_with_and_without_its_corruption() -> None:
    x, y = photos(60)
    y[::5] = (y[::5] + 1) % 10
    evaluator = Corruptions(kinds=KINDS, severities=(5,))
    evidence = gathered(evaluator, Brightness().eval(), x, y, THREAT)
    (stage,) = evaluator.stages(None)  # type: ignore[arg-type]
    changed = stage.attack(Brightness(), x, y, THREAT, IndexedNoise(0, torch.arange(60)))
    model = Brightness()
    expected = (model(x).argmax(1) == y) & (model(changed).argmax(1) == y)
    assert torch.equal(evidence.survives, expected)
    assert 0 < int(expected.sum()) < int((model(x).argmax(1) == y).sum())


def test_all_selects_every_kind_and_severity() -> None:
    x, y = photos(30)
    model = Brightness().eval()
    drawn = Corruptions(kinds=KINDS, severities=(1, 5))
    every = replace(drawn, each="all")
    assert [stage.name for stage in every.stages(None)][:2] == ["gaussian_noise 1", "gaussian_noise 5"]  # type: ignore[arg-type]
    hard, mild = gathered(every, model, x, y, THREAT).survives, gathered(drawn, model, x, y, THREAT).survives
    assert int(hard.sum()) < int(mild.sum())
    assert not bool((hard & ~mild).any())


def test_a_result_has_a_verdict_and_is_no_upper_bound() -> None:
    x, y = photos(60)
    result = robustcli.evaluate(Brightness(), (x, y), norm="linf", eps=0, attack="corruptions", kinds=KINDS)
    assert result.verdict == "TRUSTED", result.suspicions
    assert not result.evaluation.is_upper_bound
    assert verdict(result.evaluation) == "TRUSTED"
    assert threats_of(result.evaluation) == "corruptions"
    assert result.clean == 1
    assert result.robust < 1
    assert {image.broken_by for image in result.per_image} == {"", "corruption"}
    assert result.evaluation.stages[0].is_search is False


def test_a_network_without_gradients_can_be_trusted_under_corruptions() -> None:
    x, y = photos(60)
    model = torch.no_grad()(Brightness())
    result = robustcli.evaluate(model, (x, y), norm="linf", eps=0, attack="corruptions", kinds=KINDS)
    assert result.verdict == "TRUSTED", result.suspicions


def test_a_network_that_guesses_is_suspect() -> None:
    x, y = photos(60)
    result = robustcli.evaluate(Brightness(), (x, (y + 1) % 10), norm="linf", eps=0, attack="corruptions")
    assert result.verdict == "SUSPECT"


def test_corruptions_join_attacks_in_the_worst_case() -> None:
    x, y = photos(40)
    members = [{"name": "attack", "attack": {"name": "pgd", "steps": 3}}, {"name": "corruptions", "kinds": KINDS}]
    how = {"norm": "linf", "eps": 0.01}
    both = robustcli.evaluate(Brightness(), (x, y), attack="worst_case", members=members, **how)  # type: ignore[arg-type]
    parts = [
        robustcli.evaluate(Brightness(), (x, y), attack="pgd", steps=3, keep="last", **how),  # type: ignore[arg-type]
        robustcli.evaluate(Brightness(), (x, y), attack="corruptions", kinds=KINDS, **how),  # type: ignore[arg-type]
    ]
    assert (both.survives == parts[0].survives & parts[1].survives).all()
    assert "without gradients" not in str(both)
    assert threats_of(both.evaluation) == "linf 0.01, 2 corruption"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("fogg",)}, "did you mean 'fog'"),
        ({"kinds": ()}, "expected one kind or more"),
        ({"severities": (6,)}, "severities from 1 to 5"),
    ],
)
def test_unknown_kinds_and_severities_are_refused(settings: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        Corruptions(**settings)  # type: ignore[arg-type]
