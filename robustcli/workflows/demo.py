"""`robust demo`: train the two networks of the README and compare their numbers with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from robustcli.store.results import RunResults

SPECS = ("demo/digits_natural", "demo/digits_pgd_at")
# Accuracies of the README, as fractions, and the software that measured them.
MEASURED_WITH = "torch 2.14 on a CPU"
EXPECTED: Mapping[str, Mapping[str, float]] = {
    "digits_natural": {"clean": 0.953, "pgd_50": 0.114, "autoattack": 0.114},
    "digits_pgd_at": {"clean": 0.981, "pgd_50": 0.686, "autoattack": 0.669},
}
# Other versions and processors round differently, and training amplifies this.
TOLERANCE = 0.03


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside, because sums over several are rounded differently on every number of cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Agreement:
    """One number next to that of the README, as fractions."""

    network: str
    evaluation: str
    expected: float
    found: float

    @property
    def agrees(self) -> bool:
        """True if both differ by no more than the tolerance; the README has one decimal of a percentage."""
        return abs(self.found - self.expected) <= TOLERANCE + 0.0005


def agreements(results: RunResults) -> Iterator[Agreement]:
    """Compare a run of the demo with the README, number by number."""
    for key, expected in EXPECTED[results.name].items():
        yield Agreement(results.name, key, expected, results.evaluations[key].accuracy)
