"""AutoAttack: several attacks with published budgets, each on the images that still survive."""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

from robustcli.attacks import Attack
from robustcli.attacks.apgd import Apgd
from robustcli.attacks.fab import Fab, fab_t
from robustcli.attacks.square import Square
from robustcli.attacks.surrogate import FastCopy
from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.evaluators.autoattack_package import Package
from robustcli.registry.types import Count

Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
PUBLISHED: dict[str, tuple[Part, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# Replacements of parts if a model has too few classes for their loss or targets.
_WITH_2_CLASSES: dict[Part, Part | None] = {"apgd-dlr": None, "apgd-t": None, "fab-t": "fab"}
_WITH_3_CLASSES: dict[Part, Part | None] = {"apgd-t": "apgd-dlr"}
_TARGETS = 9
# Parts that rarely break images that survive the others.
_CONFIRMING = ("fab", "fab-t", "square")
# Parts that walk along the decision boundary, for which logits in bf16 are too coarse.
_PRECISE = ("fab", "fab-t")
# Version "rand": gradients per step, and forward passes per image.
_GRADIENTS, _VOTES = 20, 10


@EVALUATORS.register(
    "autoattack",
    # One of each checks that the network gives gradients. Of Square's forwards up to a third are in vain, because it
    # tries several proposals in one pass; without those there are 7,827.
    passes=(10_350, 1901, 0),
    parts="attacks",
    leaderboard={"version": "standard", "precision": "fp32", "sample_first": None},
    sees_through_masking=True,
    renamed={"screen": "sample_first"},
    smoke={"attacks": ["apgd-ce", "fab-t"], "batch_size": 8},
)
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Evaluator):
    """AutoAttack: APGD, FAB and Square with the published budgets, in sequence, each on the images that survive.

    The engine "native" runs the attacks of robustcli. Its noise depends on the image but not on batches, and a broken
    image costs nothing more. "reference" runs the package of the authors on all images that are classified correctly,
    and holds all of them as float32; its noise depends on the batches. With both, every adversarial image is measured
    and classified again before it counts. If there are too few classes for a published setting, a warning says what
    is changed.

    When to use: for every number that is published or compared.

    First setting: version: standard on all test images; examples: 1000 for a first look, and version: rand for
    networks that draw noise.

    Args:
        version: "standard" (apgd-ce, apgd-t, fab-t, square), "plus" (adds apgd-dlr and fab, more restarts) or
            "rand" (apgd-ce and apgd-dlr on the mean of 20 gradients, for models whose logits vary; the majority of
            10 forward passes decides the class of an image).
        attacks: attacks to run in this order instead of the version's, with its budgets: apgd-ce, apgd-dlr, apgd-t,
            fab, fab-t, square. The package calls this "custom".
        engine: implementation of the attacks.
        precision: precision of the search with the native engine. "fast" searches in bf16 where measured passes take
            clearly less time than in fp32, and never with FAB, which would miss images; a warning names the attacks
            that searched in fp32, with the same points as "fp32". Adversarial images are confirmed in single precision;
            images for which that fails are attacked again in single precision, and survivors of a search in bf16 get a
            few last steps there.
        compile: compile the search of the native engine. This takes about a minute and pays off in long evaluations;
            if it fails, a warning says so.
        sample_first: if more images survive, fab, fab-t and square attack a random sample of this size first, and the
            other images only if one of the sample breaks. The result says how many broken images this may miss, with
            95 % confidence. Null attacks all.
        batch_size: images attacked at once.

    Reference: Croce and Hein, ICML 2020; l1: Croce and Hein, ICML 2021; code: pyautoattack.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    attacks: tuple[Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"], ...] | None = None
    engine: Literal["native", "reference"] = "native"
    precision: Literal["fp32", "fast"] = "fp32"
    compile: bool = False
    sample_first: Count | None = None
    batch_size: Count = 250

    def __post_init__(self) -> None:
        if self.attacks == ():
            raise RobustCliError("evaluator autoattack: attacks is empty; remove it to run the attacks of the version")
        asked = {
            "precision": self.precision != "fp32",
            "compile": self.compile,
            "sample_first": self.sample_first is not None,
        }
        for name in (name for name, is_set in asked.items() if is_set and self.engine == "reference"):
            raise RobustCliError(
                f"evaluator autoattack: only the native engine has '{name}'; remove it or engine: reference"
            )
        if self.attacks is not None and len(set(self.attacks)) < len(self.attacks):
            raise RobustCliError("evaluator autoattack: attacks names an attack twice")

    @property
    def votes(self) -> int:
        """Forward passes that decide the class of an image: several in version "rand"."""
        return _VOTES if self.version == "rand" else 1

    def stages(self, context: AttackContext) -> list[Stage]:
        if self.version == "plus" and context.threat.norm == "l1":
            warnings.warn("version 'plus' has no published settings for l1; use 'standard'", stacklevel=2)
        planned = self.attacks or PUBLISHED[self.version]
        parts = _fitted(planned, context.classes)
        for part, targets in ((part, self._targets(part, context)) for part in parts if part in ("apgd-t", "fab-t")):
            if targets >= context.classes:
                warnings.warn(
                    f"{part} aims at {context.classes - 1} target classes, all that there are, instead of the "
                    f"published {targets}",
                    stacklevel=2,
                )
        native = self._native(parts, context)
        return native if self.engine == "native" else [self._package(parts, context, native)]

    def _package(self, parts: tuple[Part, ...], context: AttackContext, native: list[Stage]) -> Stage:
        """All attacks by the package of the authors, as one stage."""
        package = Package(version=self.version, attacks=parts, batch_size=self.batch_size)
        return Stage(
            name="package",
            attack=package,
            noise="package",
            batch_size=None,
            has_black_box="square" in package.parts(context.threat, context.shape),
            similar=tuple(native),
        )

    def _native(self, parts: tuple[Part, ...], context: AttackContext) -> list[Stage]:
        exact = FastCopy(is_compiled=self.compile)
        fast = None if self.precision == "fp32" else replace(exact, precision="fast")
        return [
            Stage(
                name=part,
                attack=self._attack(part, context),
                noise=part,
                batch_size=self.batch_size,
                sample=self.sample_first if part in _CONFIRMING else None,
                surrogate=exact,
                faster=None if part in _PRECISE else fast,
            )
            for part in parts
        ]

    def _targets(self, part: Part, context: AttackContext) -> int:
        return 5 if part == "apgd-t" and self._shrinks(context) else _TARGETS

    def _shrinks(self, context: AttackContext) -> bool:
        """Whether APGD starts in a larger ball."""
        return context.threat.norm == "l1" and self.version == "standard"

    def _attack(self, part: Part, context: AttackContext) -> Attack:
        if part == "square":
            return Square(schedule="fixed", batch_size=self.batch_size)
        if part == "fab-t":
            return fab_t(targets=self._targets(part, context), batch_size=self.batch_size)
        if part == "fab":
            return Fab(restarts=5 if self.version == "plus" else 1)
        shrinks = self._shrinks(context)
        if part == "apgd-t":
            return Apgd(
                loss="targeted_dlr",
                targets=self._targets(part, context),
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
    """The parts, after replacing those that need more classes."""
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
