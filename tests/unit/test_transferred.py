"""Transfer: the attack uses another network; the evaluated one decides."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoint import random_network, save_network
from torch import Tensor, nn

from robustcli.architectures import Network
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import images
from robustcli.errors import RobustCliError
from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.fingerprint import files_digest, fingerprint
from robustcli.evaluation.gather import gather
from robustcli.evaluators import AttackContext
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.other_threat import Under
from robustcli.evaluators.transfer_attack import Transferred
from robustcli.evaluators.worst_case import WorstCase
from robustcli.store.checkpoint import Checkpoint
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

COUNT = 40
THREAT = ThreatModel("linf", Fraction(1, 40))
PGD = Pgd(steps=5)


def write(path: Path, *, seed: int = 0) -> Network:
    """A checkpoint of a random network, and that network."""
    network = random_network(seed=seed)
    save_network(path, network)
    return network


def case(path: Path) -> tuple[Network, Tensor, Tensor]:
    model, x = write(path).requires_grad_(False), images(COUNT)
    return model, x, model(x).argmax(1)


def gathered(evaluator: Any, model: nn.Module, x: Tensor, y: Tensor) -> Evidence:
    return gather(evaluator, model, x, y, THREAT, IndexedNoise(0, torch.arange(len(x))))


def test_from_the_network_itself_it_is_the_attack(tmp_path: Path) -> None:
    model, x, y = case(tmp_path / "same.pt")
    itself = gathered(Transferred(source=str(tmp_path / "same.pt"), attack=PGD), model, x, y)
    usual = gathered(Attacked(attack=PGD), model, x, y)
    assert torch.equal(itself.survives, usual.survives)
    assert torch.equal(itself.margins, usual.margins)
    assert 0 < int(usual.survives.sum()) < COUNT


def test_from_another_network_it_is_weaker_and_needs_no_gradient_of_the_target(tmp_path: Path) -> None:
    model, x, y = case(tmp_path / "same.pt")
    write(tmp_path / "other.pt", seed=1)
    asked: list[bool] = []
    model.register_forward_hook(lambda _module, inputs, logits: asked.append(logits.requires_grad))
    found = gathered(Transferred(source=str(tmp_path / "other.pt"), attack=PGD), model, x, y)
    assert asked == [False, False], "clean images, adversarial images"
    assert int(found.survives.sum()) > int(gathered(Attacked(attack=PGD), model, x, y).survives.sum())


class Held(nn.Module):
    """A linear network whose weights are no parameters, as in quantized layers, or that holds nothing."""

    def __init__(self, x: Tensor, *, in_buffers: bool) -> None:
        super().__init__()
        weight = torch.randn(x[0].numel(), 10, generator=torch.Generator().manual_seed(0))
        if in_buffers:
            self.register_buffer("weight", weight)
        else:
            self.__dict__["weight"] = weight

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("in_buffers", [True, False])
def test_a_network_without_parameters_gets_images_of_another_one(tmp_path: Path, in_buffers: bool) -> None:
    _, x, _ = case(tmp_path / "other.pt")
    model = Held(x, in_buffers=in_buffers).eval()
    y = model(x).argmax(1)
    found = gathered(Transferred(source=str(tmp_path / "other.pt"), attack=PGD), model, x, y)
    assert found.stages[0].entered == COUNT
    assert found.stages[0].forwards > COUNT


def test_it_is_an_upper_bound_and_can_reveal_masked_gradients(tmp_path: Path) -> None:
    model, x, y = case(tmp_path / "same.pt")
    transferred = Transferred(source=str(tmp_path / "same.pt"), attack=PGD)
    settings = (model, x, y, THREAT, 0)
    alone = evaluate("transfer_attack", {}, transferred, *settings)
    assert alone.is_upper_bound
    assert not any("survived it with" in reason for reason in alone.suspicions), "its steps are not about this network"
    weak = Attacked(attack=Pgd(steps=0))
    both = evaluate("worst_case", {}, WorstCase(members=[weak, transferred]), *settings)
    assert not both.is_upper_bound
    assert any("2 transferred pgd, which uses no gradients, broke" in reason for reason in both.suspicions)


def test_the_file_is_part_of_what_findings_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "source.pt"
    model, x, y = case(path)

    def mark(evaluator: Any) -> dict[str, str]:
        return fingerprint(model, x, y, THREAT, "e", {}, 0, evaluator.files)

    transferred = Transferred(source=str(path), attack=PGD)
    before = mark(transferred)
    assert mark(WorstCase(members=[AutoAttack(), transferred])) == before
    assert mark(Under(norm="l2", eps=Fraction(1), evaluator=transferred)) == before
    write(path, seed=1)
    after = mark(transferred)
    assert {name for name in after if after[name] != before[name]} == {"files"}
    with pytest.raises(RobustCliError, match=r"gone\.pt: cannot be read"):
        files_digest([str(tmp_path / "gone.pt")])


@pytest.mark.parametrize("shape", [(3, 8, 8, 10), (1, 8, 8, 4)])
def test_a_network_for_other_images_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "source.pt"
    model, x, y = case(path)
    Checkpoint.read(path).model_copy(update={"shape": list(shape)}).write(path)
    words = f"takes {'x'.join(map(str, shape[:3]))} images of {shape[3]} classes; expected 1x8x8 images of 10"
    with pytest.raises(RobustCliError, match=words):
        gathered(Transferred(source=str(path), attack=PGD), model, x, y)


def test_a_file_of_weights_may_be_the_source(tmp_path: Path) -> None:
    model, x, y = case(tmp_path / "same.pt")
    weights = Checkpoint.read(tmp_path / "same.pt").weights
    torch.save({name: value for name, value in weights.items() if name.startswith("body.")}, tmp_path / "weights.pt")
    source = Transferred(
        source=str(tmp_path / "weights.pt"), architecture="small_cnn width=16", mean=(0.0,), std=(1.0,), attack=PGD
    )
    usual = gathered(Attacked(attack=PGD), model, x, y)
    assert torch.equal(gathered(source, model, x, y).survives, usual.survives)
    assert not torch.equal(gathered(replace(source, std=(0.1,)), model, x, y).margins, usual.margins)
    with pytest.raises(
        RobustCliError, match=r"nothing says which normali.ation it was trained with; give mean and std"
    ):
        gathered(replace(source, mean=None, std=None), model, x, y)
    with pytest.raises(RobustCliError, match=r"source: .*weights\.pt: not written by .*--transfer --architecture NAME"):
        gathered(replace(source, architecture=None), model, x, y)


def test_the_other_network_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    name = "mobilenetv3_small_050"
    real = timm.create_model
    # The published weights would have to be downloaded.
    monkeypatch.setattr(timm, "create_model", lambda model, **_: real(model, pretrained=False, num_classes=10))
    transferred = Transferred(source=f"timm:{name}", attack=PGD)
    assert transferred.files == ()
    stage = transferred.stages(AttackContext(ThreatModel("linf", Fraction(1, 10)), (3, 64, 64), 10))[0]
    assert stage.surrogate is not None
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 10))
    source = stage.surrogate(model)
    assert source(torch.rand(2, 3, 64, 64)).shape == (2, 10)
    assert not any(parameter.requires_grad for parameter in source.parameters())
    stage = transferred.stages(AttackContext(ThreatModel("linf", Fraction(1, 10)), (3, 64, 64), 7))[0]
    assert stage.surrogate is not None
    with pytest.raises(RobustCliError, match=f"source: timm:{name}: gives 10 classes; expected 7"):
        stage.surrogate(model)
