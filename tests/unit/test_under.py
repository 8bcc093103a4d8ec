"""Evaluations under several threats: each in its own ball, their union, and verification."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import standing
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import images, linear_net
from robustcli.errors import RobustCliError
from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluation.wording import threats_of
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.other_threat import Under
from robustcli.evaluators.worst_case import WorstCase
from robustcli.registry.types import Norm
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.files import read_json, write_json
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.compare import compare
from robustcli.workflows.train import run_experiment
from robustcli.workflows.verify import verify_folder

LINF = ThreatModel("linf", Fraction(2, 100))
RADII: dict[Norm, Fraction] = {"l2": Fraction(1, 10), "l1": Fraction(1, 2)}
PGD = Attacked(attack=Pgd(steps=20, keep="fooled"))


def under(norm: Norm) -> Under:
    return Under(norm=norm, eps=RADII[norm], evaluator=PGD)


def case() -> tuple[nn.Module, Tensor, Tensor, IndexedNoise]:
    """A linear model and images, some of which break in only one norm."""
    model, x = linear_net(64).eval(), images(200)
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, y, IndexedNoise(0, torch.arange(len(x)))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_it_is_the_evaluator_with_the_other_threat(norm: Norm) -> None:
    model, x, y, rng = case()
    found = standing(under(norm), model, x, y, LINF, rng)
    assert torch.equal(found, standing(PGD, model, x, y, ThreatModel(norm, RADII[norm]), rng))
    assert 0 < int(found.sum()) < len(x)


def test_the_worst_case_over_threats_is_the_intersection_of_the_survivors() -> None:
    model, x, y, rng = case()
    alone = [standing(member, model, x, y, LINF, rng) for member in (PGD, under("l2"), under("l1"))]
    union = standing(WorstCase(members=[PGD, under("l2"), under("l1")]), model, x, y, LINF, rng)
    assert torch.equal(union, alone[0] & alone[1] & alone[2])
    assert int(union.sum()) < min(int(alive.sum()) for alive in alone), "no threat breaks all that the others break"


def test_a_spec_radius_of_0_leaves_the_others() -> None:
    model, x, y, rng = case()
    nothing = ThreatModel("linf", Fraction(0))
    union = standing(WorstCase(members=[PGD, under("l2")]), model, x, y, nothing, rng)
    assert torch.equal(union, standing(under("l2"), model, x, y, nothing, rng))
    assert not union.all()


def test_a_threat_further_inside_stays() -> None:
    model, x, y, rng = case()
    nested = Under(norm="linf", eps=Fraction(1, 2), evaluator=under("l2"))
    assert torch.equal(standing(nested, model, x, y, LINF, rng), standing(under("l2"), model, x, y, LINF, rng))


def test_every_stage_records_its_threat_and_attacks_only_survivors() -> None:
    model, x, y, _ = case()
    members = WorstCase(members=[PGD, under("l2")])
    result = evaluate("worst_case", {}, members, model, x, y, LINF, 0)
    assert [stage.threat for stage in result.stages] == [None, "l2 0.1"]
    assert result.suspicions == []
    assert threats_of(result) == "linf 0.02, l2 0.1"
    # No attack in l2: random points break images.
    idle = Under(norm="l2", eps=Fraction(3), evaluator=Attacked(attack=Pgd(steps=0)))
    missed = evaluate("worst_case", {}, WorstCase(members=[PGD, idle]), model, x, y, LINF, 0)
    assert any("random points" in suspicion for suspicion in missed.suspicions)


SPEC = """\
name: several
data: {name: digits, train_size: 400}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.01}
defense: natural
train: {epochs: 4, batch_size: 32, optimizer: adam, lr: 2e-3, check_examples: 10, device: cpu}
evaluate:
  alone: {name: other_threat, norm: l2, eps: 1/2, evaluator: ATTACK, examples: 60, save_examples: true}
  union:
    name: worst_case
    members: [ATTACK, {name: other_threat, norm: l2, eps: 1/2, evaluator: ATTACK}]
    examples: 60
    save_examples: true
""".replace("ATTACK", "{name: attack, attack: {name: pgd, keep: fooled}}")


@pytest.mark.slow
def test_what_is_kept_of_it_can_be_checked(tmp_path: Path) -> None:
    run = run_experiment(ExperimentSpec.parse(SPEC, "the test"), tmp_path, Screen(is_quiet=True))
    results = read_json(run.results)["evaluations"]
    assert (results["alone"]["norm"], results["alone"]["eps"]) == ("l2", "0.5")
    assert (results["union"]["norm"], results["union"]["eps"]) == ("linf", "0.01")
    assert results["alone"]["parameters"]["eps"] == "0.5"
    assert any(stage["broken"] for stage in results["union"]["stages"] if stage["threat"] == "l2 0.5")
    findings = verify_folder(run.path, [], None, "cpu")
    assert {finding.key for finding in findings} >= {"alone", "union"}
    assert [problem for finding in findings for problem in finding.problems] == []
    # Two unions over other threats are not compared; with a smaller radius the witnesses lie outside.
    other = ExperimentSpec.parse(SPEC.replace("1/2", "1/4"), "the test")
    with pytest.raises(RobustCliError, match=r"different threats .* in A, .*, l2 .* in B"):
        compare(run.path, run_experiment(other, tmp_path, Screen(is_quiet=True)).path)
    path = run.path / "evaluations" / "union.json"
    write_json(path, _with_threat(read_json(path), "l2 0.25"))
    problems = next(finding.problems for finding in verify_folder(run.path, [], None, "cpu") if finding.key == "union")
    assert any("adversarial examples" in problem and "lie outside" in problem for problem in problems)


def _with_threat(result: dict[str, Any], threat: str) -> dict[str, Any]:
    stages = [{**stage, "threat": threat if stage["threat"] else None} for stage in result["stages"]]
    return {**result, "stages": stages}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{name: other_threat, norm: linf, eps: 8, evaluator: clean}",
            r"evaluate\.one\.eps: 8 is larger .* write 8/255",
        ),
        (
            "{name: other_threat, norm: linf, eps: 0.1, evaluator: {name: attack, attack: carlini_wagner}}",
            "supports only l2; the threat is linf",
        ),
        (
            "{name: worst_case, members: [{name: other_threat, norm: linf, eps: 0.1,"
            " evaluator: {name: attack, attack: {name: pgd, step_size: 2}}}]}",
            "2 is larger than the pixel range",
        ),
    ],
)
def test_a_spec_is_checked_against_the_threat_of_each_place(text: str, problem: str) -> None:
    spec = SPEC.partition("evaluate:")[0].replace("norm: linf, eps: 0.01", "norm: l2, eps: 0.5")
    with pytest.raises(RobustCliError, match=problem):
        ExperimentSpec.parse(f"{spec}evaluate:\n  one: {text}\n", "the test")


def test_an_attack_of_the_other_norm_is_welcome_there() -> None:
    inside = "{name: other_threat, norm: l2, eps: 0.5, evaluator: {name: attack, attack: carlini_wagner}}"
    ExperimentSpec.parse(SPEC.partition("evaluate:")[0] + f"evaluate:\n  one: {inside}\n", "the test")
