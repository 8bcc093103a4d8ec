"""Examples made by other programs: which ones count, and refused files."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluation.noted_warnings import joined
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.from_file import FromFile
from robustcli.evaluators.worst_case import WorstCase
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(1, 20))
COUNT = 24


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, images, labels, and examples of which some fool it."""
    model, x = conv_net(classes=4).eval(), images(COUNT)
    with torch.no_grad():
        y = model(x).argmax(1)
    x_adv = Pgd(steps=5)(model, x, y, THREAT, IndexedNoise(0, torch.arange(COUNT)))
    with torch.no_grad():
        assert 0 < int((model(x_adv).argmax(1) != y).sum()) < COUNT
    return model, x, y, x_adv


def judged(case: tuple[nn.Module, Tensor, Tensor, Tensor], path: Path, batch_size: int = 7, **arrays: Any) -> Result:
    model, x, y, _ = case
    np.savez(path / "given.npz", **arrays)
    evaluator = FromFile(path=str(path / "given.npz"), batch_size=batch_size)
    return evaluate("from_file", {}, evaluator, model, x, y, THREAT, 0)


def test_images_survive_if_their_examples_do(case: Any, tmp_path: Path) -> None:
    model, _, y, x_adv = case
    with torch.no_grad():
        expected = "".join("1" if right else "0" for right in (model(x_adv).argmax(1) == y).tolist())
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    given = {"x_adv": x_adv[order].numpy(), "indices": order.numpy(), "labels": y[order].numpy()}
    found = judged(case, tmp_path, **given)
    assert found.survivors == expected
    assert found.warnings == []
    assert not any("search" in text or "outside" in text for text in found.suspicions or ())
    assert judged(case, tmp_path, 100, x_adv=x_adv.numpy()).survivors == expected


def test_examples_outside_the_threat_set_do_not_count_and_are_named(case: Any, tmp_path: Path) -> None:
    _, x, _, x_adv = case
    given = x_adv.clone()
    given[[2, 9, 20]] = 1 - x[[2, 9, 20]]
    found = judged(case, tmp_path, x_adv=given.numpy())
    assert found.verdict == "SUSPECT"
    reason = "given examples outside the threat set, which are not counted: 3 images (2, 9, 20)"
    assert reason in (found.suspicions or ())
    assert reason not in found.warnings
    assert [found.survivors[number] for number in (2, 9, 20)] == ["1"] * 3


def test_images_without_an_example_are_counted_as_when_clean(case: Any, tmp_path: Path) -> None:
    _, _, _, x_adv = case
    found = judged(case, tmp_path, x_adv=x_adv[:22].numpy())
    assert found.warnings == ["no example is given, so that the clean image is counted: 2 images (22, 23)"]
    assert found.survivors.endswith("11")


def test_bytes_are_read_as_pixels(case: Any, tmp_path: Path) -> None:
    model, x, y, _ = case
    coded = (x * 255).round().to(torch.uint8)
    found = judged(case, tmp_path, x_adv=coded.numpy())
    with torch.no_grad():
        right = model(coded.float() / 255).argmax(1) == y
    assert found.survivors == "".join("1" if one else "0" for one in right.tolist())


def test_other_labels_are_another_data_set(case: Any, tmp_path: Path) -> None:
    _, _, y, x_adv = case
    with pytest.raises(EvaluationError, match=r"image 0 has label \d in the file and \d in the data: other images"):
        judged(case, tmp_path, x_adv=x_adv.numpy(), labels=((y + 1) % 4).numpy())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((2, 1, 8, 8))}, "x_adv: found nothing; expected"),
        (
            {"x_adv": np.zeros((2, 8, 8, 3), np.float32)},
            r"found \(2, 8, 8, 3\); expected \(n, c, h, w\) with images of",
        ),
        ({"x_adv": np.full((2, 1, 8, 8), 1.5)}, "found values from 1.5 to 1.5"),
        ({"x_adv": np.full((2, 1, 8, 8), np.nan)}, "found values from nan"),
        ({"x_adv": np.zeros((2, 1, 8, 8), np.int64)}, "found int64; expected floats"),
        ({"x_adv": np.zeros((2, 1, 8, 8)), "indices": np.array([1, 1])}, "names an image twice"),
        ({"x_adv": np.zeros((2, 1, 8, 8)), "labels": np.array([1])}, r"labels: found \(1,\) of int64; expected \(2,\)"),
        ({"x_adv": np.zeros((2, 1, 8, 8)), "indices": np.array([0.0, 1.0])}, r"indices: found \(2,\) of float64"),
        ({"x_adv": np.zeros((2, 1, 8, 8)), "indices": np.array(["a", "b"])}, r"indices: found \(2,\) of <U1"),
        ({"x_adv": np.float32(1)}, r"x_adv: found \(\); expected"),
    ],
)
def test_another_file_is_refused(case: Any, tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(RobustCliError, match=said):
        judged(case, tmp_path, **arrays)


def test_what_is_no_npz_file_is_refused(case: Any, tmp_path: Path) -> None:
    model, x, y, _ = case
    (tmp_path / "text.npz").write_text("no", encoding="utf-8")
    for name in ("text.npz", "nowhere.npz"):
        with pytest.raises(RobustCliError, match=f"{name}: cannot be read as an .npz file"):
            evaluate("from_file", {}, FromFile(path=str(tmp_path / name)), model, x, y, THREAT, 0)


def test_given_examples_can_be_a_member_of_the_worst_case(case: Any, tmp_path: Path) -> None:
    model, x, y, x_adv = case
    alone = judged(case, tmp_path, x_adv=x_adv.numpy())
    weak = Attacked(attack=Pgd(steps=1, keep="fooled"))
    both = WorstCase(members=[weak, FromFile(path=str(tmp_path / "given.npz"))])
    found = evaluate("worst_case", {}, both, model, x, y, THREAT, 0)
    assert found.correct <= alone.correct


def test_warnings_of_batches_are_joined() -> None:
    many = [f"far: images {', '.join(map(str, range(start, start + 15)))}" for start in (15, 0)]
    assert joined([*many, "other", "near: images 4"]) == (
        "far: 30 images (" + ", ".join(map(str, range(20))) + " and 10 more)",
        "other",
        "near: 1 image (4)",
    )
