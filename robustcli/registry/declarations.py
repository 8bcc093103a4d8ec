"""Declarations of members at their registration: facts that other code needs.

    @ATTACKS.register("carlini_wagner", norms=("l2",), smoke={"steps": 40})

Declarations are literals, because the catalog reads them from the source without importing the member. Members of
other packages use the same declarations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from robustcli.errors import RobustCliError, suggest
from robustcli.registry.types import Norm

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Passes = tuple[float, float, float]


class _Of(tuple[str, ...]):
    """The families that support a declaration."""


_COSTLY = _Of(("attacks", "defenses", "evaluators", "regularizers", "weights"))
_ATTACKING = _Of(("attacks", "defenses"))
_PENALIZING = _Of(("defenses", "regularizers"))
_FOLLOWING = _Of(("schedules", "defenses", "averaging", "regularizers", "weights"))
_ATTACK, _ARCHITECTURE, _DATASET = _Of(("attacks",)), _Of(("architectures",)), _Of(("datasets",))
_DEFENSE, _EVALUATOR, _MIXER = _Of(("defenses",)), _Of(("evaluators",)), _Of(("mixers",))


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Declaration of a member at its registration.

    Args:
        fixed: parameters that the name determines, such as the depth of a network. Specs cannot set them, so one
            function may be several members. Names in braces stand for these values in the docstring.
        smoke: cheap settings for tests, including every parameter without a default.
        added: parameters added after a release, with their neutral values. A spec with these values keeps its digest.
        formerly: name in earlier versions. Specs and results with it are accepted, and digests use it.
        renamed: parameters by their names in earlier versions.
        requires: optional package that the member needs.
        passes: cost with the defaults and the required parameters of `smoke`: forward passes, backward passes to the
            images only, and backward passes to the weights. For a defense: of an update, in passes of one batch; for a
            regularizer: what it adds; for a weight perturbation: what it adds each time the loss is differentiated; for
            an attack or an evaluator: of one image, at most.
        fewest: lower bound of the cost, where `passes` is an upper bound.
        measured: assumption of `robust plan` if the cost of an update changes during training.
        norms: norms that the member supports.
        second_derivatives: an input gradient is differentiated in the weights, which needs fp32 without compilation.
        reads: part of the network that the member reads through hooks, such as "the features"; compiled networks do not
            call hooks.
        trains: name of the only architecture that the defense trains.
        trains_with: settings of other architectures that add the parts which the defense trains.
        two_halves: the training images have two fixed halves, and every batch has images of both, for a defense that
            learns two things from separate images.
        sets: parameter of the attack that the defense changes during training.
        measures: metric of the attack that the defense uses during training.
        metrics: names of the metrics that the attack reports.
        spares_labels: with its own attack the defense can train on images without labels.
        spans_training: an update depends on the total number of epochs, so a run cannot be continued with more
            epochs.
        goes_farther: the attack can move farther than steps times step size.
        varies_in_passes: the number of passes depends on the images, so it differs between processes.
        flat_at_x: values of `loss` whose gradient is zero at the clean image.
        branches: parameter of the architecture that counts its branches of batch norms: one for clean images, one for
            the threat and one for each other threat of the defense.
        title: name in tables of other projects, such as "ResNet-{depth}" with settings in braces.
        titles: titles to use instead of some of those that `title` gives.
        suggested_by: function of the file that returns the settings which weights of another program suggest by their
            names and shapes, or None; see architectures/weight_names.py.
        searches: the network contains many networks and names the one that it prefers.
        mixes_alone: every image is changed independently of its batch.
        mixes_labels: training labels become shares of several classes.
        without_attack: the evaluator runs no attack.
        without_threat: the evaluator does not use the threat model of the spec or of the command.
        parts: parameter that lists the parts of the evaluator; `robust eval --attack PART` runs one of them.
        leaderboard: settings with which the number is the `autoattack_acc` of RobustBench; empty if it never is.
        sees_through_masking: the evaluator includes attacks without gradients, so gradient masking does not deceive
            it.
        reads_test: the data set takes a positional argument "test", with which it reads only its test part. Evaluations
            give it.
        own_images: the data set consists of the user's files, of any size.
        given_by: path that means the data set and is its first parameter: a suffix such as ".npz", a file inside a
            folder such as "/pack.json", or "/" for any other folder.
        image: channels, height and width of an image.
        classes: number of classes.
        train_images: number of training images.
        test_images: number of test images.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    smoke: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    formerly: Annotated[str, _EVALUATOR] = ""
    renamed: Annotated[dict[str, str], _EVALUATOR] = field(default_factory=dict)
    requires: str = ""
    passes: Annotated[Passes | None, _COSTLY] = None
    fewest: Annotated[Passes | None, _DEFENSE] = None
    measured: Annotated[str, _DEFENSE] = ""
    norms: Annotated[tuple[Norm, ...], _ATTACKING] = get_args(Norm)
    second_derivatives: Annotated[bool, _PENALIZING] = False
    reads: Annotated[str, _PENALIZING] = ""
    trains: Annotated[str, _DEFENSE] = ""
    trains_with: Annotated[dict[str, Any], _DEFENSE] = field(default_factory=dict)
    two_halves: Annotated[bool, _DEFENSE] = False
    sets: Annotated[str, _DEFENSE] = ""
    measures: Annotated[str, _DEFENSE] = ""
    metrics: Annotated[tuple[str, ...], _ATTACK] = ()
    spares_labels: Annotated[bool, _DEFENSE] = False
    spans_training: Annotated[bool, _FOLLOWING] = False
    goes_farther: Annotated[bool, _ATTACKING] = False
    varies_in_passes: Annotated[bool, _ATTACK] = False
    flat_at_x: Annotated[tuple[str, ...], _ATTACK] = ()
    branches: Annotated[str, _ARCHITECTURE] = ""
    title: Annotated[str, _ARCHITECTURE] = ""
    titles: Annotated[dict[str, str], _ARCHITECTURE] = field(default_factory=dict)
    suggested_by: Annotated[str, _ARCHITECTURE] = ""
    searches: Annotated[bool, _ARCHITECTURE] = False
    mixes_alone: Annotated[bool, _MIXER] = False
    mixes_labels: Annotated[bool, _MIXER] = False
    without_attack: Annotated[bool, _EVALUATOR] = False
    without_threat: Annotated[bool, _EVALUATOR] = False
    parts: Annotated[str, _EVALUATOR] = ""
    leaderboard: Annotated[dict[str, Any], _EVALUATOR] = field(default_factory=dict)
    sees_through_masking: Annotated[bool, _EVALUATOR] = False
    reads_test: Annotated[bool, _DATASET] = False
    own_images: Annotated[bool, _DATASET] = False
    given_by: Annotated[str, _DATASET] = ""
    image: Annotated[tuple[int, int, int] | None, _DATASET] = None
    classes: Annotated[int | None, _DATASET] = None
    train_images: Annotated[int | None, _DATASET] = None
    test_images: Annotated[int | None, _DATASET] = None


def checked_declaration(family: str, declared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check and return the declaration of a member.

    Args:
        where: place of the registration, for messages.

    Raises:
        RobustCliError: a keyword is unknown in this family, or its value has another type.
    """
    from pydantic import ValidationError

    known = _known(family)
    for keyword in declared:
        if keyword not in known:
            raise RobustCliError(
                f"{where}: register({keyword}=...): members of {family} declare no '{keyword}'"
                f"{suggest(keyword, sorted(known))}"
            )
    for keyword, value in declared.items():
        try:
            known[keyword].validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]
            place = "".join(f"[{part!r}]" for part in problem["loc"] if isinstance(part, int))
            raise RobustCliError(
                f"{where}: register({keyword}=...){place}: found {problem['input']!r}; {problem['msg'].lower()}"
            ) from None
    return dict(declared)


@cache
def _known(family: str) -> "dict[str, TypeAdapter[Any]]":
    """The keywords that members of a family may declare, with the checks of their values."""
    from pydantic import ConfigDict, TypeAdapter

    checks = {}
    for keyword, hint in get_type_hints(Declaration, include_extras=True).items():
        families = next((part for part in get_args(hint) if isinstance(part, _Of)), (family,))
        if family in families:
            checks[keyword] = TypeAdapter(hint, config=ConfigDict(strict=True))
    return checks
