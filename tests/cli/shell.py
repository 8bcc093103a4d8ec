"""Helpers of the command-line tests: a tiny spec, and the outcome of a command."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TINY = """\
# One epoch on 128 digits.
name: tiny
data: {name: digits, val_size: 50, train_size: 128, augment: {crop: 1}}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 2}
train:
  epochs: 1
  batch_size: 32
  lr: 1e-2
  optimizer: adam
  weight_decay: 0
  select: robust
  check_examples: 20
  check_steps: 2
  device: cpu
evaluate:
  clean: {name: clean, examples: 60}
  pgd: {name: attack, attack: {name: pgd, steps: 3, keep: fooled}, examples: 60}
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Args:
        code: its exit code.
        out, err: what it printed.
    """

    code: int
    out: str
    err: str

    def require(self, code: int, *texts: str) -> "Outcome":
        """Check the exit code, that no traceback was printed, and that each of `texts` was."""
        assert self.code == code, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.out + self.err
        for text in texts:
            assert text in self.out + self.err, f"'{text}' is not in:\n{self.out}\n{self.err}"
        return self


Robust = Callable[..., Outcome]


def environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """Environment of a process: one thread, and imports from this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}
