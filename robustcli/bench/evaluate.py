"""The story of `robust bench eval`: PGD-20 with images that leave when they break, beside its passes and peers."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.bench.baselines import find_peer, foolbox_attack, torchattacks_attack
from robustcli.bench.subjects import BenchSubject
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.restore import restored_generators, restored_model
from robustcli.evaluators import chunks
from robustcli.evaluators.attacked import Attacked
from robustcli.measuring.counters import peak_bytes
from robustcli.measuring.passes import passes_by_kind
from robustcli.measuring.timing import AGAIN, ALONE, Sample, Spread, Stopwatch, Timed, compare, measure, to_others
from robustcli.runtime.precision import full_precision

STEPS = 20
LEAVING, WHOLE = "ours, images leave", "ours, to the last step"
TORCHATTACKS, FOOLBOX = "torchattacks, as it comes", "foolbox, as it comes"
# Images attacked at once, by everybody.
BATCH = 250


@dataclass
class _Way:
    """One way to evaluate.

    Args:
        run: does it, and says who is still classified correctly; None where it only makes passes.
    """

    run: Callable[[], Tensor | None]
    survives: Tensor | None = None

    def __call__(self) -> None:
        self.survives = self.run()


def bench_evaluation(subject: BenchSubject, rounds: int) -> dict[str, Any]:
    """PGD-20 on all images by every way there is, in turn in every round.

    A step is a quarter of the radius. The limit is a gradient to the images for every step and a forward, on all
    images, with nothing around them.
    """
    watch = Stopwatch(subject.x.device)
    missing: list[str] = []
    # Ours and the limit run in single precision; peers in whatever torch does where its user says nothing.
    with restored_model(subject.network), restored_generators(subject.x.device):
        subject.network.requires_grad_(False)
        ways = {name: _Way(run) for name, run in _ways(subject, missing).items()}
        passes = {name: _counted(subject, way) for name, way in ways.items()}
        peaks = {name: peak_bytes(way.run, subject.x.device) for name, way in ways.items()}
        samples: dict[str, Sample] = {name: Timed(way, watch) for name, way in ways.items()}
        seconds = measure(samples, rounds)
    compared = compare(seconds, LEAVING, AGAIN)
    others = to_others(seconds, ALONE, TORCHATTACKS)
    rows = [
        {
            "name": name,
            "seconds": asdict(Spread.of(seconds[name])),
            "images_per_second": len(subject.x) / Spread.of(seconds[name]).median,
            **compared[name],
            **others[name],
            "robust": None if way.survives is None else int(way.survives.sum()),
            "passes": passes[name],
            "peak_bytes": peaks[name],
        }
        for name, way in ways.items()
    ]
    return {
        "bench": "evaluation",
        **subject.to_json([name.partition(",")[0] for name in (TORCHATTACKS, FOOLBOX) if name in ways]),
        "attack": f"pgd-{STEPS}",
        "clock": watch.name,
        "rounds": rounds,
        "notes": missing,
        "rows": rows,
    }


def _ways(subject: BenchSubject, missing: list[str]) -> dict[str, Callable[[], Tensor | None]]:
    """By their names; ours first."""

    def ours(keep: str) -> Callable[[], Tensor]:
        evaluator = Attacked(attack=Pgd(steps=STEPS, keep="fooled" if keep == "fooled" else "last"), batch_size=BATCH)
        return lambda: subject.gather(evaluator).survives

    ways: dict[str, Callable[[], Tensor | None]] = {
        LEAVING: ours("fooled"),
        AGAIN: ours("fooled"),
        WHOLE: ours("last"),
        ALONE: lambda: _passes_alone(subject),
    }
    threat = subject.threat
    if threat.norm == "l1":
        missing.append("torchattacks and foolbox are left out: they have no PGD of this kind under l1")
        return ways
    torchattacks, foolbox = (find_peer(name, missing) for name in ("torchattacks", "foolbox"))
    if torchattacks is not None:
        attack = torchattacks_attack(torchattacks, subject.network, threat.norm, threat.radius, STEPS)
        ways[TORCHATTACKS] = lambda: _as_users_do(subject, attack)
    if foolbox is not None:
        other = foolbox_attack(foolbox, subject.network, threat.norm, threat.radius, STEPS)
        ways[FOOLBOX] = lambda: _as_users_do(subject, other)
    return ways


def _as_users_do(subject: BenchSubject, attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """On all images, batch by batch, with a network whose weights want gradients; then one forward."""
    network: nn.Module = subject.network.requires_grad_(True)
    survives = []
    for part in chunks(len(subject.x), BATCH):
        points = attack(subject.x[part], subject.y[part])
        with torch.no_grad():
            survives.append(network(points).argmax(1) == subject.y[part])
    network.requires_grad_(False)
    return torch.cat(survives).cpu()


def _passes_alone(subject: BenchSubject) -> None:
    with full_precision(subject.x.device.type):
        for part in chunks(len(subject.x), BATCH):
            x, y = subject.x[part], subject.y[part]
            for _ in range(STEPS):
                x = x.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(subject.network(x), y, reduction="sum"), x)
            with torch.no_grad():
                subject.network(x.detach())


def _counted(subject: BenchSubject, way: _Way) -> dict[str, float | None]:
    """Forwards and gradients per image, and how many gradients went to the weights too.

    The last is told at a convolution, and None of a network that has none.
    """
    images = len(subject.x)
    has_convolution = any(isinstance(module, nn.Conv2d) for module in subject.network.modules())
    with ExitStack() as stack:
        passes = stack.enter_context(count_passes(subject.network))
        kinds = stack.enter_context(passes_by_kind(subject.network)) if has_convolution else None
        way()
    return {
        "forwards": passes.forwards / images,
        "gradients": passes.gradients / images,
        "weight_gradients": kinds.weight_gradients / images if kinds else None,
    }
