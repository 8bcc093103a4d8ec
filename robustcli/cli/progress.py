"""Progress of a run or an evaluation: a bar in a terminal, lines in a log."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from robustcli.evaluation.progress import StageProgress
from robustcli.evaluation.watcher import Lines, Watcher
from robustcli.evaluation.wording import interval
from robustcli.store.evaluations import Evaluation
from robustcli.store.records import Record

# Measures that are printed after the others.
_CHECK = ("clean", "fgsm", "checked_on")


class Screen(Watcher):
    """Shows progress on the error stream, so that standard output holds only results.

    Args:
        is_quiet: show nothing.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=is_quiet, markup=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, disable=is_quiet or not self.console.is_terminal)
        self._task = self._bar.add_task("training", total=None, rate="", visible=False)
        self._attack = self._bar.add_task("", total=None, rate="", visible=False)
        self._lines = Lines(self._print)
        self._images = 0

    def __enter__(self) -> "Screen":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def title(self, text: str) -> None:
        """Print which of several runs begins."""
        self._print(f"{text}:")

    def settings(self, text: str) -> None:
        """Print how the passes of training are computed."""
        self._print(text)

    def begin(self, updates: int, done: int) -> None:
        """Start the bar: `updates` in total, `done` of them finished."""
        self._bar.update(self._task, total=updates, completed=done, visible=True)

    def step(self, images: int) -> None:
        """Count one update of `images` images."""
        self._images += images
        elapsed = self._bar.tasks[0].elapsed
        rate = f"{self._images / elapsed:,.0f} images/s" if elapsed else ""
        self._bar.update(self._task, advance=1, rate=rate)

    def epoch(self, record: Record) -> None:
        """Print the record of a finished epoch."""
        shown = (item for item in record.measures.items() if item[0] not in _CHECK)
        trained = "  ".join(f"{key} {value:.4g}" for key, value in shown)
        accuracies = {"clean": record.clean, "robust": record.robust, "fgsm": record.fgsm}
        checked = "  ".join(f"{key} {100 * found:.1f}%" for key, found in accuracies.items() if found is not None)
        self._print(f"epoch {record.epoch + 1:>3}  {trained}  {record.checked_on}: {checked}")

    def evaluation(self, key: str, result: Evaluation | None) -> None:
        """Print that an evaluation starts (result None) or is finished."""
        self._bar.update(self._task, visible=False)
        self._bar.update(self._attack, visible=False)
        text = "..." if result is None else f"{interval(result)} % of {result.total} images, {result.seconds:.0f} s"
        self._print(f"evaluating {key}: {text}")

    def attack(self, key: str, progress: StageProgress) -> None:
        """Show the progress of an attack: a bar in a terminal, lines in a log."""
        if not self.console.is_terminal:
            self._lines.attack(key, progress)
            return
        survive = f"{progress.broken} broken, {progress.survivors} survive  " if progress.number else ""
        self._bar.update(
            self._attack,
            description=f"{key}: {progress.title}",
            total=progress.entered,
            completed=progress.attacked,
            rate=f"{survive}{progress.rate}",
            visible=True,
        )

    def _print(self, text: str) -> None:
        # Not wrapped: one line per event in any width.
        self.console.print(text, highlight=False, soft_wrap=True)
