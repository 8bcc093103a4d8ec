"""Fifteen settings that spoil adversarial training, each prevented by a guard or by design."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_steps import LINF, train
from torch import Tensor, nn

from robustcli.attacks.fosc_pgd import FoscPgd
from robustcli.attacks.none import NoAttack
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.defenses import Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.errors import SpecError
from robustcli.optimization.weights.awp import Awp
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_yaml
from robustcli.store.files import read_json
from robustcli.threat.noise import IndexedNoise
from robustcli.workflows.train import run_experiment

SPEC = """\
name: guarded
data: {name: digits, val_size: 50}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 8/255}
defense: {name: pgd_at, steps: 10}
train: {epochs: 10}
evaluate: {clean: clean}
"""
PGD = "evaluate.p={name: attack, attack: {name: pgd, %s}}"
GATED = "architecture={name: cifs, network: resnet18}"


def said(path: Path, *overrides: str) -> tuple[list[str], list[str], list[str]]:
    """The problems, warnings and notes of a spec."""
    path.write_text(SPEC, encoding="utf-8")
    try:
        spec = ExperimentSpec.read(path, overrides)
    except SpecError as error:
        return error.problems, [], []
    return [], spec.warnings(), spec.notes()


# Number, overrides, kind of message (None: no message), and its words.
GUARDS: list[tuple[int, list[str], str | None, str]] = [
    (1, ["threat.eps=8"], "refused", "threat.eps: 8 is larger than the pixel range [0, 1]; write 8/255"),
    (1, ["defense.step_size=2"], "refused", "defense.step_size: 2 is larger than the pixel range [0, 1]; write 2/255"),
    (1, ["defense.attack={name: adam_pgd, step_sizes: [25, 0.01]}"], "refused", "defense.attack.step_sizes.0: 25 is"),
    (2, ["threat.eps=0.031"], "warned", "threat.eps: 0.031 is near 8/255"),
    (3, ["defense.start=clean", "defense.steps=2"], "warned", "defense: 2 steps of 0.007843 from the clean image"),
    (3, ["defense.start=clean", "defense.steps=4"], None, ""),
    (4, ["defense.steps=7"], "noted", "defense: 7 steps of 0.007843 from a random start cannot reach the far side"),
    (4, ["defense.steps=8"], None, ""),
    (5, ["defense={name: trades, start_std: 0}"], "refused", "defense.start_std: 0 is outside the range"),
    (5, ["defense={name: hat, start_std: 0}"], "refused", "defense.start_std: 0 is outside the range"),
    (5, ["defense={name: dial, start_std: 0}"], "refused", "defense.start_std: 0 is outside the range"),
    (5, ["defense.attack={name: pgd, loss: kl, start: clean}"], "refused", "'clean' with loss 'kl' never moves"),
    (6, ["defense.weights=awp", "data.mixer=cutmix"], None, ""),
    (7, ["defense={name: free, weights: awp}"], "refused", "defense.weights: unknown parameter of 'free'"),
    (7, ["defense={name: free, averaging: {name: swa, start_epoch: 5}}"], "refused", "'swa' takes in the weights of"),
    (7, ["defense=free", "data.extra={path: more.npz}"], "refused", "data.extra: 'free' carries its perturbation over"),
    (8, ["defense=grad_align", "train.precision=bf16"], "refused", "train.precision: bf16 is too coarse"),
    (9, ["defense={name: fw_at_adapt, max_distortion: 2}"], "refused", "defense.max_distortion: 2 is outside (1/3, 1]"),
    (9, ["defense={name: fw_at_adapt, max_distortion: 0.7}"], "warned", "defense.max_distortion: 0.7: two steps of"),
    (10, ["defense=n_fgsm"], None, ""),
    (10, ["evaluate.p={name: attack, attack: {name: n_fgsm, clip: null}}"], "refused", "would leave the threat set"),
    (11, ["defense=mart", "data.label_smoothing=0.1"], "refused", "'mart' is published for whole labels"),
    (11, ["defense=cifs", GATED, "data.mixer=mixup"], "refused", "'cifs' is published for whole labels"),
    (11, ["defense={name: mart, soft_labels: expected}", "data.label_smoothing=0.1"], None, ""),
    (12, ["defense.averaging={name: ema, decay: 0.995, ramp: false}"], "warned", "a window of 200 updates, and 110 in"),
    (12, ["defense.averaging={name: ema, decay: 0.995, ramp: false}", "train.epochs=40"], None, ""),
    (13, ["train.select=robust", "data.val_size=0"], "refused", "train.select: 'robust' needs validation images"),
    (14, [PGD % "steps: 10", "data.label_smoothing=0.1"], "noted", "evaluate.p: unverified: training with smoothed"),
    (14, [PGD % "steps: 10", "data.label_smoothing=0.1", "evaluate.a=autoattack"], None, ""),
]


@pytest.mark.parametrize(("number", "overrides", "how", "text"), GUARDS)
def test_every_guard_reports_its_mistake(
    number: int, overrides: list[str], how: str | None, text: str, tmp_path: Path
) -> None:
    found = dict(zip(("refused", "warned", "noted"), said(tmp_path / "spec.yaml", *overrides), strict=True))
    texts = found.pop(how) if how else []
    assert [text in each for each in texts] == ([True] if how else [])
    assert not any(found.values())


def test_every_number_is_here() -> None:
    assert {number for number, *_ in GUARDS} == set(range(1, 16)) - {15}


def test_6_the_ascent_of_awp_takes_the_loss_of_the_update_itself() -> None:
    """Of mixed labels too: it is called twice, with one batch."""
    seen: list[Batch] = []

    class Noting(StatelessLoss):
        def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
            seen.append(batch)
            return nn.functional.cross_entropy(model(batch.x_adv), batch.y)

    train(MinMax(attack=NoAttack(), loss=Noting(), weights=Awp()), conv_net(), updates=1)
    assert len(seen) == 2
    assert seen[0] is seen[1]


def test_14_a_result_says_that_it_is_not_verified(tmp_path: Path) -> None:
    text = SPEC.replace("epochs: 10", "epochs: 0, check_examples: 10, device: cpu")
    text = text.replace(
        "{clean: clean}", "{clean: {name: clean, examples: 9}, p: {name: attack, attack: fgsm, examples: 9}}"
    )
    for smoothing, is_said in (("0.1", True), ("0", False)):
        spec = ExperimentSpec.check(
            parse_yaml(text.replace("val_size: 50", f"val_size: 50, label_smoothing: {smoothing}"), "t")
        )
        run = run_experiment(spec, tmp_path / smoothing, Screen(is_quiet=True))
        found: dict[str, Any] = read_json(run.results)["evaluations"]
        assert any("unverified" in warning for warning in found["p"]["warnings"]) is is_said
        assert not any("unverified" in warning for warning in found["clean"]["warnings"])


def test_15_a_criterion_of_convergence_does_not_depend_on_the_batch() -> None:
    """FOSC uses the loss of each image; with a mean it would shrink in large batches and stop all images."""
    model, x, y = conv_net().eval().double(), images(6, dtype=torch.float64), labels(6)
    attack = FoscPgd(steps=5, start="clean", criterion=0.01)
    together, _ = attack.search(model, x, y, LINF, IndexedNoise(0, torch.arange(6)))
    for i in range(6):
        row = slice(i, i + 1)
        alone, _ = attack.search(model, x[row], y[row], LINF, IndexedNoise(0, torch.arange(6)[row]))
        assert torch.allclose(alone, together[row], rtol=0, atol=1e-12)
    moved = (together - x).flatten(1).abs().amax(1)
    assert bool((moved > 0).any())
