"""Checks after an evaluation: did attacks fail because the model is robust, or for another reason?

They follow the checklists of Carlini et al. (2019) and AutoAttack's flags. They are not proofs, so each one yields a
suspicion as text; a result without suspicions is trusted.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.apgd import Apgd
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.data.images import AnyImages
from robustcli.evaluation.chance import chance_suspicions
from robustcli.evaluation.confirm import predict
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gradient import gives_gradient
from robustcli.evaluation.two_phase import TwoPhases
from robustcli.evaluators.from_file import OUTSIDE
from robustcli.statistics import clopper_pearson
from robustcli.store.evaluations import StageResult
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# Maximum number of survivors in a check.
_PROBES = 64
# Share of images that attacks without gradients may break after gradient attacks (AutoAttack's flag).
_BLACK_BOX_SHARE = 0.002
# Share of the survivors of cross-entropy that other losses may break; published evaluations reach 0.15.
_OTHER_LOSSES_SHARE = 0.3
# Share of the checked images with an anomaly above which the result is suspect.
_ODD_SHARE = 0.05
_RANDOM_POINTS = 20
# Votes, as a multiple of the usual number, that decide about another point of a survivor if logits vary.
_SURER = 5
_WIDE_STEPS = 20
# Allowed drop of clean accuracy relative to training, in addition to chance.
_CLEAN_GAP = 0.05
# A threat model in every norm that contains all images.
_WHOLE_BOX = ThreatModel("linf", Fraction(1))


def postflight(
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    evidence: Evidence,
    rng: IndexedNoise,
    *,
    votes: int = 1,
    is_vote: bool = False,
    expected_clean: float | None = None,
) -> list[str]:
    """Return suspicions as text.

    Args:
        model: network in eval mode, weights without gradients.
        x, y: the images that were evaluated, and their labels.
        evidence: results of the attacks.
        rng: noise, indexed by image.
        votes: forward passes that decide the class of an image; more than 1 if logits may vary from call to call.
        is_vote: whether the network is defined by such a vote, as a smoothed one or one behind a random preprocessor.
        expected_clean: known clean accuracy of the network on similar images.
    """
    found = [
        *chance_suspicions(evidence.clean, evidence.labels, evidence.classes, x),
        *_of_clean_images(evidence, expected_clean),
        *_of_stages(evidence),
        *_of_two_phases(evidence),
    ]
    if not any(stage.is_search for stage in evidence.stages):
        return found
    found += [text for text in evidence.warnings if text.startswith(OUTSIDE)]
    if votes > 1:
        text = "logits vary from call to call: the number is a majority vote of several passes, not a worst case"
        if any(attack.gradients > 1 for attack in evidence.attacks):
            found += [] if is_vote else [text]
        else:
            found.append(f"{text}; attacks follow the gradient of one pass: use autoattack, version rand, or eot_pgd")
    has_gradient = gives_gradient(model, x) if evidence.has_gradient is None else evidence.has_gradient
    if not has_gradient:
        left_out = ", ".join(evidence.without_gradient)
        found.append(
            f"the network gives no gradient, so {f'{left_out} could not run' if left_out else 'none was used'}: only "
            "weak attacks were tried, and the true robust accuracy may be lower"
        )
    rows = evidence.survives.nonzero().flatten()[:_PROBES].to(x.device)
    if len(rows):
        noise = rng.rows(rows).split("postflight")
        pairs = zip(evidence.threats, evidence.stages, strict=True)
        searched = dict.fromkeys(threat for threat, stage in pairs if stage.is_search)
        found += _of_random_points(model, x[rows], y[rows], searched, noise, votes)
        if has_gradient:
            found += _of_gradients(model, x[rows], y[rows], noise, votes)
            found += _of_longer_attacks(model, x[rows], y[rows], noise, evidence, votes)
    return found


def _of_clean_images(evidence: Evidence, expected: float | None) -> Iterator[str]:
    """Check that clean accuracy is as in training."""
    right, total = int((evidence.clean == evidence.labels).sum()), evidence.total
    if expected is not None and expected - clopper_pearson(right, total)[1] > _CLEAN_GAP:
        yield (
            f"clean accuracy is {100 * right / total:.1f} %, but was {100 * expected:.1f} % on held-out images in "
            "training: other images, another pixel range or other weights?"
        )


def _of_stages(evidence: Evidence) -> Iterator[str]:
    """Check the counts of the stages."""
    by_threat: dict[ThreatModel, list[tuple[StageResult, Attack]]] = {}
    for threat, stage, attack in zip(evidence.threats, evidence.stages, evidence.attacks, strict=True):
        if stage.is_search:
            by_threat.setdefault(threat, []).append((stage, attack))
    pairs = [pair for own in by_threat.values() for pair in own]
    searched = [
        stage for stage, attack in pairs if stage.forwards > stage.entered or stage.gradients or attack.is_given
    ]
    if any(stage.entered for stage, _ in pairs) and not searched:
        yield "no attack made a search pass, so this is clean accuracy; increase the number of steps"
    # Only attacks under one threat model can be compared: those in a larger set break more images for that reason.
    for own in by_threat.values():
        yield from _of_one_threat(own, evidence.total)


def _of_one_threat(pairs: Sequence[tuple[StageResult, Attack]], total: int) -> Iterator[str]:
    """Compare the attacks under one threat model with each other."""
    gradients_tried = False
    for stage, _ in pairs:
        if stage.is_black_box and gradients_tried and stage.broken > _BLACK_BOX_SHARE * total:
            yield (
                f"{stage.name}, which uses no gradients, broke {stage.broken} of {total} images that survived gradient "
                "attacks: gradients may be masked, and the true robust accuracy lower"
            )
        gradients_tried |= not stage.is_black_box
    (first, attack), *later = pairs
    if isinstance(attack, Apgd) and attack.loss == "ce":
        left = first.entered - first.broken
        # Longer attacks break more images for that reason.
        others = sum(stage.broken for stage, other in later if not stage.is_black_box and other.steps <= attack.steps)
        if others > max(_OTHER_LOSSES_SHARE * left, _BLACK_BOX_SHARE * total):
            yield (
                f"of {left} images that survived cross-entropy, {others} fell to other losses: its gradients may "
                "vanish, so attacks that use only cross-entropy mean little for this model"
            )


def _of_two_phases(evidence: Evidence) -> Iterator[str]:
    """Check that expensive attacks on a sample agree with cheap ones on all images."""
    phases = TwoPhases.of(evidence)
    if phases is not None and phases.disagreement is not None:
        yield phases.disagreement


def _of_longer_attacks(
    model: nn.Module, x: Tensor, y: Tensor, rng: IndexedNoise, evidence: Evidence, votes: int
) -> Iterator[str]:
    """Check whether attacks that do not adapt their steps break more images with more of them."""
    for attack, threat, stage in zip(evidence.attacks, evidence.threats, evidence.stages, strict=True):
        longer = attack.longer()
        # A transfer attack searched on another network.
        if longer is None or stage.is_black_box:
            continue
        points = longer(model, x, y, threat, rng.split("longer"))
        surer = votes if votes == 1 else _SURER * votes
        broken = int((predict(model, points, y, surer).predictions != y).sum())
        if broken > max(1, _ODD_SHARE * len(x)):
            yield (
                f"{longer.steps} steps of {stage.name} break {broken} of {len(x)} images that survived it with "
                f"{attack.steps}"
            )


def _of_random_points(
    model: nn.Module, x: Tensor, y: Tensor, threats: Iterable[ThreatModel], rng: IndexedNoise, votes: int
) -> Iterator[str]:
    """Check whether random points of the threat set fool the model."""
    fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for threat, draw in product(threats, range(_RANDOM_POINTS)):
        points = threat.sample(x, rng.split(f"random point {draw}"))
        wrong = predict(model, points, y, votes).predictions != y
        if votes > 1 and bool(wrong.any()):
            # One of many close votes goes wrong by chance: ask again, with more of them.
            rows = wrong.nonzero().flatten()
            wrong[rows] = predict(model, points[rows], y[rows], _SURER * votes).predictions != y[rows]
        fooled |= wrong
    if bool(fooled.any()):
        yield (
            f"{int(fooled.sum())} of {len(x)} survivors are misclassified at one of {_RANDOM_POINTS} random points of "
            "the threat set: random search found what the attacks missed"
        )


def _of_gradients(model: nn.Module, x: Tensor, y: Tensor, rng: IndexedNoise, votes: int) -> Iterator[str]:
    """Check that gradients at survivors are useful."""
    count = len(x)
    for name, words in (("ce", "cross-entropy"), ("margin", "the margin of the logits")):
        grad, _, _ = input_gradient(model, x, LOSSES[name], y)  # type: ignore[index]
        flat = int(((grad == 0) | ~torch.isfinite(grad)).flatten(1).all(1).sum())
        if flat > _ODD_SHARE * count:
            yield f"the gradient of {words} is zero on {flat} of {count} survivors: attacks by gradients cannot move"
    # Where logits vary, the point where one pass was fooled says little; along the mean gradient to the end.
    attack = Pgd(steps=_WIDE_STEPS, loss="margin", keep="fooled" if votes == 1 else "last", gradients=votes)
    points = attack(model, x, y, _WHOLE_BOX, rng.split("whole box"))
    standing = int((predict(model, points, y, votes).predictions == y).sum())
    if standing > _ODD_SHARE * count:
        yield (
            f"{standing} of {count} survivors survive PGD-{_WIDE_STEPS} even when every pixel may take any value: "
            "gradients do not help, so the failure of the attacks is not a sign of robustness"
        )
