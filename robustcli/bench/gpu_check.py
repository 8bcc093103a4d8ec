"""`robust bench gpu`: everything that only a GPU can show, in at most about ten minutes."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from pydantic import SerializeAsAny

import robustcli
from robustcli.bench.autoattack import bench_autoattack
from robustcli.bench.conformance import bench_conformance
from robustcli.bench.results.bases import Bench
from robustcli.bench.subjects import BenchSubject, open_subject
from robustcli.bench.train import bench_train
from robustcli.bench.variants import Request
from robustcli.evaluation.watcher import Watcher
from robustcli.measuring.machine import Circumstances, circumstances
from robustcli.runtime.device import choose_device
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.models import Stored
from robustcli.workflows.train import run_experiment


@dataclass(frozen=True)
class Sizes:
    """Sizes of the check.

    Args:
        images: images attacked by both AutoAttack engines.
        epoch: training images of the epoch that is timed.
        batch: images per update.
        width: width of the networks that are timed.
        epochs: epochs of the model that is attacked; the epoch that is timed is the second of two.
    """

    images: int = 64
    epoch: int = 50_000
    batch: int = 256
    width: int = 64
    epochs: int = 20


class Outcome(Stored):
    """Outcome of a step; a step that measures has a result or a number."""

    status: Literal["ok", "skipped", "failed"] = "ok"
    reason: str | None = None
    result: SerializeAsAny[Bench] | None = None
    differing: int | None = None
    robust: float | None = None
    epoch_seconds: float | None = None
    images_per_second: int | None = None

    def __str__(self) -> str:
        """The status, or the most important number."""
        if self.status != "ok":
            return f"{self.status}: {self.reason}"
        if self.images_per_second is not None:
            return f"{self.images_per_second} images/s"
        if self.differing is not None:
            return f"{self.differing} verdicts differ"
        if self.robust is not None:
            return f"robust accuracy {self.robust:.2f}"
        return self.reason or "ok"


class StepOutcome(Outcome):
    """Name, duration and outcome of a step."""

    step: str
    seconds: float


class GpuCheck(Circumstances):
    """Result of `robust bench gpu`."""

    sizes: Sizes
    steps: list[StepOutcome]

    @property
    def failed(self) -> list[str]:
        """Names of the steps that failed."""
        return [step.step for step in self.steps if step.status == "failed"]


def check_gpu(device: str, sizes: Sizes, watcher: Watcher, begins: Callable[[str], None]) -> GpuCheck:
    """Run every step and return its outcome; a step that fails is an outcome too.

    Args:
        begins: called with the name of a step before it runs.
    """
    chosen = choose_device(device)
    steps = []
    with TemporaryDirectory() as folder:
        for name, run in _steps(chosen, sizes, watcher, Path(folder)):
            begins(name)
            begun = time.perf_counter()
            try:
                outcome = run()
            # Any failure on a new GPU is an outcome of the step.
            except Exception as error:
                outcome = Outcome(status="failed", reason=f"{type(error).__name__}: {error}")
            steps.append(StepOutcome(**vars(outcome), step=name, seconds=round(time.perf_counter() - begun, 1)))
    return GpuCheck(**vars(circumstances(chosen)), sizes=sizes, steps=steps)


def _steps(
    device: torch.device, sizes: Sizes, watcher: Watcher, folder: Path
) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    yield "tests that need a GPU", _run_tests
    ways: tuple[tuple[Literal["fp32", "bf16"], bool], ...] = (("fp32", False), ("bf16", False), ("bf16", True))
    for precision, is_compiled in ways:
        request = Request(
            defenses=("pgd_at", "n_fgsm"),
            width=sizes.width,
            batch_size=sizes.batch,
            rounds=3,
            precision=precision,
            is_compiled=is_compiled,
            device=str(device),
        )
        yield f"updates in {precision}{', compiled' if is_compiled else ''}", partial(_updates, request)
    subject: list[BenchSubject] = []

    def train() -> Outcome:
        trained, robust = _trained(device, sizes, watcher, folder)
        subject.append(trained)
        return Outcome(robust=robust)

    yield "training of the model to attack", train
    yield "verdicts of AutoAttack next to the authors' package", lambda: _conformance(subject[0])
    yield "speed of AutoAttack", lambda: Outcome(result=bench_autoattack(subject[0], 3, None))
    for is_compiled in (False, True):
        name = f"epoch of PreActResNet-18 in bf16{', compiled' if is_compiled else ''}"
        yield name, partial(_epoch, device, sizes, watcher, folder, is_compiled)


def _updates(request: Request) -> Outcome:
    return Outcome(result=bench_train(request))


def _trained(device: torch.device, sizes: Sizes, watcher: Watcher, folder: Path) -> tuple[BenchSubject, float | None]:
    """Return a trained model to attack, and its robust accuracy after the last epoch."""
    spec = ExperimentSpec.read(
        experiments.find("demo/digits_pgd_at"),
        [f"train.device={device}", f"train.epochs={sizes.epochs}", "train.eps_warmup=0", "evaluate={clean: clean}"],
    )
    run = run_experiment(spec, folder / "runs", watcher)
    subject = open_subject(str(run.best), (), norm=None, eps=None, examples=sizes.images, data=None, device=str(device))
    return subject, run.epochs()[-1].robust


def _run_tests() -> Outcome:
    tests = Path(robustcli.__file__).parent.parent / "tests"
    if not tests.is_dir():
        return Outcome(status="skipped", reason="there are no tests next to the package; use a checkout")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(tests)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return Outcome(
        status="ok" if done.returncode == 0 else "failed",
        reason=lines[-1] if lines else done.stderr.strip()[-200:],
    )


def _conformance(subject: BenchSubject) -> Outcome:
    result = bench_conformance(subject, "fp32")
    differing = sum(
        len(row.broken_by_native_alone) + len(row.broken_by_package_alone)
        for row in result.rows
        if row.part == "standard"
    )
    return Outcome(differing=differing, result=result)


def _epoch(device: torch.device, sizes: Sizes, watcher: Watcher, folder: Path, is_compiled: bool) -> Outcome:
    """Time the second epoch of PGD adversarial training on random images of CIFAR-10's shape."""
    file = folder / "random.npz"
    if not file.exists():
        drawn = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for part, count in {"train": sizes.epoch, "test": sizes.images}.items():
            arrays[f"x_{part}"] = drawn.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(count) % 10
        np.savez(file, **arrays)
    spec = ExperimentSpec.parse(
        f"""
name: epoch
data: {{name: npz, path: "{file}", augment: {{crop: 4, flip: true}}}}
architecture: {{name: preact_resnet18, width: {sizes.width}}}
threat: {{norm: linf, eps: 8/255}}
defense: {{name: pgd_at, steps: 10, step_size: 2/255}}
train:
  epochs: 2
  batch_size: {sizes.batch}
  precision: {"bf16" if device.type == "cuda" else "fp32"}
  compile: {str(is_compiled).lower()}
  device: "{device}"
  check_examples: {sizes.images}
  check_steps: 1
evaluate: {{clean: clean}}
""",
        "robust bench gpu",
    )
    run = run_experiment(spec, folder / f"epoch-{is_compiled}", watcher)
    seconds = run.epochs()[1].seconds
    return Outcome(epoch_seconds=seconds, images_per_second=round(sizes.epoch / max(seconds, 1e-9)))
