"""One evaluation and its files: first a journal, then result, per-image results and adversarial examples."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from robustcli.data.images import Images
from robustcli.data.splits import Data
from robustcli.evaluation.confirm import votes_for
from robustcli.evaluation.evaluate import evaluate, evaluate_share
from robustcli.evaluation.fingerprint import fingerprint
from robustcli.evaluation.first_images import sorted_by_class
from robustcli.evaluation.journal import FolderJournal
from robustcli.evaluation.per_image import per_image_results, write_adversarial_examples, write_per_image
from robustcli.evaluation.progress import Report, StageProgress, silent
from robustcli.evaluation.restore import settled
from robustcli.evaluation.shards import ShardQueue
from robustcli.evaluators import Evaluator
from robustcli.registry.registry import MemberSpec
from robustcli.registry.types import exact_text
from robustcli.specs.check import to_plain, with_leaves
from robustcli.specs.settings import EvaluateOptions
from robustcli.store.evaluation_files import EvaluationFiles
from robustcli.store.evaluations import Evaluation, read_evaluation
from robustcli.store.files import write_json
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that one evaluation depends on.

    Args:
        files: output files.
        chosen: evaluator and settings as in the spec; `evaluator` is built from it.
        threat: threat model, unless the evaluator has its own.
        seed: seed of the noise.
        stamps: warnings that belong to every number of this network.
        expected_clean: clean accuracy on held-out images in training, if known.
    """

    files: EvaluationFiles
    chosen: MemberSpec
    evaluator: Evaluator
    data: Data
    network: nn.Module
    threat: ThreatModel
    seed: int
    stamps: Sequence[str] = ()
    expected_clean: float | None = None

    def run(self, report: Report = silent) -> Evaluation:
        """Evaluate, or read the result of an earlier process; unfinished work is resumed.

        Args:
            report: called when an attack begins and after each of its batches.
        """
        files, options = self.files, self._options
        if files.result.exists():
            if files.journal.exists():
                FolderJournal(files.journal).remove()  # Left by a process that was killed just before removing it.
            return read_evaluation(files.result)
        x, y = self._images()
        mark = self._fingerprint(x, y)
        journal = FolderJournal.open(files.journal, mark)
        result = evaluate(
            self.chosen.name,
            plain_parameters(self.chosen),
            self.evaluator,
            self.network,
            x,
            y,
            self._threat,
            self.seed,
            journal=journal,
            expected_clean=self.expected_clean,
            report=report,
            keeps_examples=options.save_examples,
        )
        assert result.evidence is not None
        write_per_image(files.per_image, per_image_results(result.evidence))
        if options.save_examples:
            with settled(self.network, x.device.type):
                write_adversarial_examples(
                    files.adversarial_examples,
                    result.evidence,
                    self.evaluator.network(self.network),
                    x,
                    y,
                    votes_for(self.evaluator, self.network),
                )
        order = sorted_by_class(self.data, options.examples)
        warned = [*result.warnings, *order, *self.stamps]
        stored = result.model_copy(update={"warnings": warned, "fingerprint": mark})
        write_json(files.result, stored.to_json())
        journal.remove()
        return read_evaluation(files.result)

    def run_shards(self, report: Report = silent) -> None:
        """Attack shards of the images, writing only to the journal, until all processes together have attacked all.

        Args:
            report: called when a shard begins, with the number of images that all processes have attacked.
        """
        if self.files.result.exists():
            return
        x, y = self._images()
        journal = FolderJournal.open(self.files.journal, self._fingerprint(x, y))
        queue = ShardQueue.of(journal.path / "shards", len(x))
        begun, before = time.monotonic(), queue.done
        for shard in queue.draw():
            # Another process may have stored the result and removed the queue.
            if self.files.result.exists():
                return
            rate = (queue.done - before) * len(x) / queue.count / (time.monotonic() - begun)
            attacked = round(len(x) * queue.done / queue.count)
            report(StageProgress("all attacks", entered=len(x), attacked=attacked, images_per_second=rate or None))
            keeps = self._options.save_examples
            evaluate_share(
                self.evaluator, self.network, x, y, self._threat, self.seed, shard, journal, keeps_examples=keeps
            )

    def _images(self) -> tuple[Images, Tensor]:
        return self.data.images("test", self._options.examples)

    @property
    def _threat(self) -> ThreatModel:
        return self.evaluator.threat or self.threat

    @property
    def _options(self) -> EvaluateOptions:
        options: EvaluateOptions = self.chosen.options
        return options

    def _fingerprint(self, x: Images, y: Tensor) -> dict[str, str]:
        name, parameters = self.chosen.name, plain_parameters(self.chosen)
        return fingerprint(self.network, x, y, self._threat, name, parameters, self.seed, self.evaluator.files)


def plain_parameters(chosen: MemberSpec) -> dict[str, Any]:
    """Settings of an evaluator in the form of a stored result, with exact numbers, such as a radius, as text."""
    parameters: dict[str, Any] = with_leaves(
        to_plain(chosen.parameters), lambda value: exact_text(value) if isinstance(value, Fraction) else value
    )
    return parameters
