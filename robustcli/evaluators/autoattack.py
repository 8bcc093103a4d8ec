"""AutoAttack: four or more attacks with published budgets, each on whoever is left."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

from robustcli.attacks import Attack
from robustcli.attacks.apgd import Apgd
from robustcli.attacks.fab import Fab, fab_t
from robustcli.attacks.square import Square
from robustcli.attacks.surrogate import SurrogateCopy
from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, Case, Stage
from robustcli.evaluators.autoattack_package import Package
from robustcli.registry.types import Count

Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
_PUBLISHED: dict[str, tuple[Part, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# What a part becomes where a model has too few classes for its loss or its targets.
_WITH_2_CLASSES: dict[Part, Part | None] = {"apgd-dlr": None, "apgd-t": None, "fab-t": "fab"}
_WITH_3_CLASSES: dict[Part, Part | None] = {"apgd-t": "apgd-dlr"}
_TARGETS = 9
# Those that seldom break what the others left.
_CONFIRMING = ("fab", "fab-t", "square")
# Those that walk along the decision boundary, for whose hyperplanes logits in bf16 are too coarse.
_PRECISE = ("fab", "fab-t")
# Of "rand": gradients behind one step, and forwards that judge an image.
_GRADIENTS, _LOOKS = 20, 10


@EVALUATORS.register(
    "autoattack",
    passes=(7818, 1900, 0),
    sees_through_masking=True,
    smoke={"attacks": ["apgd-ce", "fab-t"], "batch_size": 8},
)
@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """AutoAttack: APGD, FAB and Square with the published budgets, one after the other on whoever is left.

    The engine "native" runs the attacks of this program. Its noise is that of the image, whatever the batch, and an
    image that is broken costs nothing more. "reference" hands all images that are right when clean to the package
    of the authors, whose noise depends on the batches. In both, every adversarial image is measured and classified
    by a forward of our own. Each departure that few classes force is announced as a warning.

    When to use: for every number that is published or compared.

    First setting: version: standard on all test images; examples: 1000 for a first look, and version: rand for
    networks that draw noise.

    Args:
        version: "standard" (apgd-ce, apgd-t, fab-t, square), "plus" (adds apgd-dlr and fab, more restarts) or
            "rand" (apgd-ce and apgd-dlr on the mean of 20 gradients, for models whose logits vary; an image is what
            most of 10 forwards say).
        attacks: others than the version's, in their order and with its budgets: apgd-ce, apgd-dlr, apgd-t, fab,
            fab-t, square. What "custom" is in the package.
        engine: who attacks.
        precision: of the search by the native engine. "fast" makes its passes in bf16, but for FAB, which misses
            images then; what it finds is confirmed in single precision, attacked again there if that fails, and
            survivors get a few last steps there.
        compile: whether the native engine's search is compiled, which takes about a minute and pays in long
            evaluations; where that fails a warning says so.
        screen: of more survivors than this, fab, fab-t and square attack so many first, drawn at random, and the
            others only if one of those breaks; the result says what that can miss with 95 % confidence. Null attacks
            all.
        batch_size: images attacked at once.

    Reference: Croce and Hein, ICML 2020; l1: Croce and Hein, ICML 2021; code: pyautoattack.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    attacks: tuple[Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"], ...] | None = None
    engine: Literal["native", "reference"] = "native"
    precision: Literal["fp32", "fast"] = "fp32"
    compile: bool = False
    screen: Count | None = None
    batch_size: Count = 250

    def __post_init__(self) -> None:
        if self.attacks == ():
            raise RobustCliError("evaluator autoattack: attacks is empty; leave it out for those of the version")
        hasty = {
            "precision": self.precision != "fp32",
            "compile": self.compile,
            "screen": self.screen is not None,
        }
        for name in (name for name, is_asked in hasty.items() if is_asked and self.engine == "reference"):
            raise RobustCliError(f"evaluator autoattack: {name} is of the native engine; leave it or engine out")
        if self.attacks is not None and len(set(self.attacks)) < len(self.attacks):
            raise RobustCliError("evaluator autoattack: attacks names one of them twice")

    @property
    def looks(self) -> int:
        """How many forwards judge an image: several where the model's logits may vary from call to call."""
        return _LOOKS if self.version == "rand" else 1

    @property
    def is_hasty(self) -> bool:
        """Whether the search is in bf16."""
        return self.precision == "fast"

    def stages(self, case: Case) -> list[Stage]:
        if self.version == "plus" and case.threat.norm == "l1":
            warnings.warn("version 'plus' has no published settings for l1; use 'standard'", stacklevel=2)
        planned = self.attacks or _PUBLISHED[self.version]
        parts = _fitted(planned, case.classes)
        for part, targets in ((part, self._targets(part, case)) for part in parts if part in ("apgd-t", "fab-t")):
            if targets >= case.classes:
                warnings.warn(
                    f"{part} aims at {case.classes - 1} target classes, all that there are, instead of the "
                    f"published {targets}",
                    stacklevel=2,
                )
        if self.engine == "reference":
            package = Package(version=self.version, attacks=parts, batch_size=self.batch_size)
            has_square = "square" in package.parts(case.threat, case.shape)
            return [Stage(name="package", attack=package, noise="package", batch_size=None, has_black_box=has_square)]
        exact = partial(SurrogateCopy, is_compiled=self.compile)
        fast = exact if self.precision == "fp32" else partial(exact, precision="fast")
        return [
            Stage(
                name=part,
                attack=self._attack(part, case),
                noise=part,
                batch_size=self.batch_size,
                sample=self.screen if part in _CONFIRMING else None,
                searcher=exact if part in _PRECISE else fast,
            )
            for part in parts
        ]

    def _targets(self, part: Part, case: Case) -> int:
        return 5 if part == "apgd-t" and self._shrinks(case) else _TARGETS

    def _shrinks(self, case: Case) -> bool:
        """Whether APGD begins in a wider ball."""
        return case.threat.norm == "l1" and self.version == "standard"

    def _attack(self, part: Part, case: Case) -> Attack:
        if part == "square":
            return Square(schedule="fixed")
        if part == "fab-t":
            return fab_t(targets=self._targets(part, case), batch_size=self.batch_size)
        if part == "fab":
            return Fab(restarts=5 if self.version == "plus" else 1)
        shrinks = self._shrinks(case)
        if part == "apgd-t":
            return Apgd(
                loss="targeted_dlr",
                targets=self._targets(part, case),
                radius="shrinking" if shrinks else "fixed",
                batch_size=self.batch_size,
            )
        return Apgd(
            loss="ce" if part == "apgd-ce" else "dlr",
            restarts=5 if shrinks or self.version == "plus" else 1,
            gradients=_GRADIENTS if self.version == "rand" else 1,
            radius="shrinking" if shrinks else "fixed",
            batch_size=self.batch_size,
        )


def _fitted(planned: tuple[Part, ...], classes: int) -> tuple[Part, ...]:
    """The parts, with those replaced that need more classes than there are."""
    instead = _WITH_2_CLASSES if classes == 2 else _WITH_3_CLASSES if classes == 3 else {}
    fitted = tuple(dict.fromkeys(part for name in planned if (part := instead.get(name, name)) is not None))
    if not fitted:
        raise RobustCliError(f"evaluator autoattack: none of {', '.join(planned)} works on {classes} classes")
    if fitted != planned:
        lost = "the DLR loss needs 3" if classes == 2 else "the targeted DLR loss needs 4"
        warnings.warn(
            f"{lost} classes and there are {classes}: runs {', '.join(fitted)} instead of the published "
            f"{', '.join(planned)}",
            stacklevel=3,
        )
    return fitted
