"""An evaluation never holds all images as floats, and keeps adversarial images only on request."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustcli.attacks.pgd import Pgd
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.images import Images
from robustcli.data.splits import Data, prepare
from robustcli.errors import RobustCliError
from robustcli.evaluation.evaluate import Result, evaluate, evaluate_share
from robustcli.evaluation.fingerprint import images_digest
from robustcli.evaluation.journal import FolderJournal
from robustcli.evaluation.per_image import read_adversarial_examples, write_adversarial_examples
from robustcli.evaluators.attack import Attacked
from robustcli.store.large_arrays import GrowingArray, read_rows, write_npz
from robustcli.threat.threat import ThreatModel

COUNT, BATCH = 600, 50
LINF = ThreatModel("linf", 0.1)
EVALUATOR = Attacked(attack=Pgd(steps=1), batch_size=BATCH)


class LargestFloats(TorchDispatchMode):
    """Records the largest number of floats in a tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.largest = max(self.largest, tensor.numel())
        return found


@pytest.fixture(scope="module")
def data(model: nn.Module) -> Data:
    """Images that the model classifies correctly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = TensorSplit(images, model(images / 255).argmax(1))
    source = Source(split, split, list("abcd"), (0.5,) * 3, (0.5,) * 3)
    return prepare(source, val_size=0, train_size=None, device=torch.device("cpu"), workers=0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()


@pytest.fixture
def run(data: Data, model: nn.Module) -> Callable[..., Result]:
    def call(x: Tensor | Images, **settings: Any) -> Result:
        return evaluate("attack", {}, EVALUATOR, model, x, data.images("test")[1], LINF, 0, **settings)

    return call


def test_no_tensor_of_all_floats_is_made(data: Data, run: Callable[..., Result], tmp_path: Path) -> None:
    with LargestFloats() as seen:
        x, y = data.images("test")
        images_digest(x, y)
        result = run(x, journal=FolderJournal.open(tmp_path / "journal", {}), keeps_examples=False)
    assert result.evidence is not None
    assert result.evidence.stages[0].broken > 0
    # A chunk of the checks before the evaluation has 250 images.
    assert seen.largest <= 250 * 3 * 8 * 8 < COUNT * 3 * 8 * 8
    assert not result.evidence.points
    assert not list((tmp_path / "journal").glob("*.points"))


@pytest.mark.slow
def test_results_are_those_of_one_tensor(
    data: Data, model: nn.Module, run: Callable[..., Result], tmp_path: Path
) -> None:
    (x, y), (whole, _) = data.images("test"), data.evaluation("test")
    one, other = run(whole), run(x, journal=FolderJournal.open(tmp_path / "journal", {}))
    # A share reads only its images; together they find the same.
    journal = FolderJournal.open(tmp_path / "shared", {})
    for share in range(3):
        evaluate_share(EVALUATOR, model, x, y, LINF, 0, (share, 3), journal)
    merged = run(x, journal=journal)
    assert images_digest(x, y) == images_digest(whole, y)
    for found in (other, merged):
        assert one.survivors == found.survivors
        assert one.evidence is not None
        assert found.evidence is not None
        assert torch.equal(one.evidence.margins, found.evidence.margins)
        assert sorted(one.evidence.points) == sorted(found.evidence.points)
        assert all(torch.equal(point, found.evidence.points[number]) for number, point in one.evidence.points.items())


def _held_files() -> Iterator[str]:
    yield from (str(path.resolve()) for path in Path("/proc/self/fd").iterdir())


def test_examples_in_the_journal_hold_no_file_open_and_are_written_from_there(
    data: Data, model: nn.Module, run: Callable[..., Result], tmp_path: Path
) -> None:
    x, y = data.images("test")
    result = run(x, journal=FolderJournal.open(tmp_path / "journal", {}))
    evidence = result.evidence
    assert evidence is not None
    assert not [path for path in _held_files() if "journal" in path]
    with LargestFloats() as seen:
        write_adversarial_examples(tmp_path / "examples.npz", evidence, model, x, y)
    assert seen.largest <= 250 * 3 * 8 * 8 < evidence.stages[0].broken * 3 * 8 * 8
    stored = [*read_adversarial_examples(tmp_path / "examples.npz")]
    assert sorted(number for _, numbers, _ in stored for number in numbers.tolist()) == sorted(evidence.points)


def test_images_without_examples_are_attacked_again_if_examples_are_wanted(
    data: Data, run: Callable[..., Result], tmp_path: Path
) -> None:
    x, _ = data.images("test")
    journal = FolderJournal.open(tmp_path / "journal", {})
    run(x, journal=journal, keeps_examples=False)
    result = run(x, journal=journal)
    assert result.evidence is not None
    assert len(result.evidence.points) == result.evidence.stages[0].broken


def test_a_growing_array_is_written_as_numpy_does(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.int16).reshape(5, 3, 4)
    with (
        GrowingArray(tmp_path, (3, 4), np.float32) as growing,
        GrowingArray(tmp_path, (7,), np.float32) as none,
        (tmp_path / "ours.npz").open("wb") as file,
    ):
        for start in (0, 2, 4):
            growing.append(rows[start : start + 2])
        write_npz(file, {"rows": growing, "none": none, "plain": rows[0]})
    np.savez_compressed(tmp_path / "theirs.npz", rows=rows, none=np.zeros((0, 7), np.float32), plain=rows[0])
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    with ZipFile(tmp_path / "ours.npz") as archive:
        assert [part.tolist() for part in read_rows(archive, "rows", 2)] == [
            rows[:2].tolist(),
            rows[2:4].tolist(),
            rows[4:].tolist(),
        ]
        assert [part.shape for part in read_rows(archive, "none", 2)] == [(0, 7)]


@pytest.mark.parametrize("images", [[0, 1], [0, 1, 2, 3], []])
def test_examples_with_other_images_than_codes_are_refused(tmp_path: Path, images: list[int]) -> None:
    arrays: dict[str, Any] = {}
    for encoding in ("steps", "halves", "floats"):
        arrays |= {f"{encoding}_images": np.array(images, dtype=np.int64), encoding: np.zeros((3, 1, 2, 2), np.float32)}
    np.savez_compressed(tmp_path / "examples.npz", **arrays)
    with pytest.raises(RobustCliError, match="steps and steps_images have different lengths"):
        list(read_adversarial_examples(tmp_path / "examples.npz"))


def test_freed_memory_goes_back_to_the_system_between_batches() -> None:
    code = """
import numpy as np
from pathlib import Path
from robustcli.runtime.allocator import keep_freed_memory, release_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
if not keep_freed_memory():
    print("0 0")
else:
    before = resident()
    blocks = [np.ones(4 << 20) for _ in range(8)]
    # The last block keeps the heap from shrinking at its end.
    blocks = blocks[-1:]
    kept = resident() - before
    release_freed_memory(64 << 20)
    print(kept, resident() - before)
"""
    kept, left = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split())
    if kept:
        assert kept > 200 << 20
        assert left < 64 << 20
