"""Progress of an evaluation, attack by attack, and the lines that show it in a log."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from robustcli.evaluation.wording import duration

# Seconds between two lines about one attack.
_PAUSE = 30.0


@dataclass(frozen=True)
class StageProgress:
    """Progress of one attack of an evaluation, or of the clean images before it.

    Args:
        stage: name of the attack; "clean" for the clean images.
        entered: number of images to attack.
        attacked: number of images attacked so far, also by earlier processes.
        number, stages: position of the attack among all, from 1; 0 for the clean images.
        broken: number of images that this attack broke.
        survivors: number of images that survive so far.
        images_per_second: speed of this process; None before its first batch.
        forwards: forward passes in the current batch.
    """

    stage: str
    entered: int
    attacked: int
    number: int = 0
    stages: int = 0
    broken: int = 0
    survivors: int = 0
    images_per_second: float | None = None
    forwards: int = 0

    @property
    def is_done(self) -> bool:
        """Whether all images were attacked."""
        return self.attacked >= self.entered

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end of this attack; None if nothing was measured."""
        if not self.images_per_second:
            return None
        return (self.entered - self.attacked) / self.images_per_second

    @property
    def title(self) -> str:
        """Name of the attack, with its position if there are several."""
        return f"{self.number}/{self.stages} {self.stage}" if self.number and self.stages > 1 else self.stage

    @property
    def rate(self) -> str:
        """Images per second as text, or the passes of the first batch so far."""
        if self.images_per_second is None:
            return f"{self.forwards:,} passes" if self.forwards else ""
        return f"{self.images_per_second:,.3g} images/s"

    def line(self) -> str:
        """Everything in one line."""
        parts = [f"{self.attacked:,} of {self.entered:,} images"]
        if self.number:
            parts += [f"{self.broken:,} broken", f"{self.survivors:,} survive"]
        parts += [self.rate] * bool(self.rate)
        if not self.is_done and self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return f"{self.title}: {', '.join(parts)}"


Report = Callable[[StageProgress], None]


def silent(progress: StageProgress) -> None:
    """Discard the report."""


@dataclass
class StageLines:
    """Print a line at the end of every attack, and every half a minute in between.

    Args:
        write: prints a line.
        prefix: text before every line.
    """

    write: Callable[[str], None]
    prefix: str = ""
    _last: float = field(default_factory=lambda: time.monotonic())

    def __call__(self, progress: StageProgress) -> None:
        now = time.monotonic()
        # The clean images take a moment, and the result shows their number.
        is_worth_a_line = progress.is_done and progress.number > 0 and progress.entered > 0
        if is_worth_a_line or now - self._last >= _PAUSE:
            self.write(f"{self.prefix}{progress.line()}")
            self._last = now
