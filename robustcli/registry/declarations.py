"""What a member declares where it is registered: everything that other code must know about it.

    @ATTACKS.register("carlini_wagner", norms=("l2",), smoke={"steps": 40})

Declarations are literals, because the catalog reads them from the source without importing the member. A member of
another package declares the same things in the same way.
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
    """The families whose members may declare something."""


_COSTLY = _Of(("attacks", "defenses", "evaluators", "regularisers", "weights"))
_ATTACKING = _Of(("attacks", "defenses"))
_PENALISING = _Of(("defenses", "regularisers"))
_FOLLOWING = _Of(("schedules", "defenses", "averaging", "regularisers", "weights"))
_ATTACK, _ARCHITECTURE, _DATASET = _Of(("attacks",)), _Of(("architectures",)), _Of(("datasets",))
_DEFENSE, _EVALUATOR, _MIXER = _Of(("defenses",)), _Of(("evaluators",)), _Of(("mixers",))


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a member declares where it is registered.

    Args:
        fixed: parameters that the name settles, such as the depth of a network. Specs cannot set them, so one function
            may be several members. Their names in braces stand for their values in the docstring.
        smoke: cheap settings for tests, among them every parameter without a default.
        added: parameters that came after a release, with the values that leave everything as it was before. A spec
            that has these values keeps the digest that it had.
        formerly: name that the member had in earlier versions. Specs and results with it are understood, and digests
            are made with it.
        renamed: parameters that had other names in earlier versions, by those.
        requires: optional package that the member needs.
        passes: cost with the defaults and the required parameters of `smoke`: forward passes, backward passes to the
            images only, and backward passes to the weights. For a defense: of an update, in passes of one batch; for a
            regulariser: what it adds; for a weight perturbation: what it adds each time the loss is differentiated; for
            an attack or an evaluator: of one image, at most.
        fewest: lower bound of the cost, where `passes` is an upper bound.
        measured: what `robust plan` assumes where the cost of an update changes during training.
        norms: norms that the member supports.
        second_derivatives: an input gradient is differentiated by the weights, which takes fp32 and no compilation.
        reads: what the member reads inside the network through hooks, such as "the features"; a compiled network does
            not call them.
        trains: name of the only architecture that the defense trains.
        trains_with: settings of any other architecture that give it the parts which the defense trains.
        two_halves: the training images have two fixed halves, and every batch holds images of both in turn, for a
            defense that learns two things from images that they do not share.
        sets: parameter of its attack that the defense changes during training.
        spares_labels: with its own attack the defense can train on images without labels.
        spans_training: what the member does at an update depends on the number of epochs of the whole run, so a run
            with it cannot be continued with more epochs.
        goes_farther: the attack reaches farther than its number of steps times their length.
        varies_in_passes: how many passes the attack takes depends on the images, so several processes take different
            numbers of them.
        flat_at_x: values of `loss` whose gradient is zero at the clean image.
        branches: parameter of the architecture that counts its branches of batch norms: one for clean images, one for
            the threat and one for each other threat of the defense.
        title: name in tables of other projects, such as "ResNet-{depth}" with settings in braces.
        searches: the network contains many networks and names the one that it prefers.
        mixes_alone: every image is changed by itself, whatever else is in its batch.
        mixes_labels: training labels become shares of several classes.
        without_attack: the evaluator runs no attack.
        without_threat: the evaluator does not use the threat model of the spec or of the command.
        sees_through_masking: the evaluator includes attacks that need no gradients, so gradient masking does not
            deceive it.
        own_images: the data set is files of the user, of any size.
        given_by: path that stands for the data set and is its first parameter: a suffix such as ".npz", a file inside
            a folder such as "/pack.json", or "/" for any other folder.
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
    second_derivatives: Annotated[bool, _PENALISING] = False
    reads: Annotated[str, _PENALISING] = ""
    trains: Annotated[str, _DEFENSE] = ""
    trains_with: Annotated[dict[str, Any], _DEFENSE] = field(default_factory=dict)
    two_halves: Annotated[bool, _DEFENSE] = False
    sets: Annotated[str, _DEFENSE] = ""
    spares_labels: Annotated[bool, _DEFENSE] = False
    spans_training: Annotated[bool, _FOLLOWING] = False
    goes_farther: Annotated[bool, _ATTACKING] = False
    varies_in_passes: Annotated[bool, _ATTACK] = False
    flat_at_x: Annotated[tuple[str, ...], _ATTACK] = ()
    branches: Annotated[str, _ARCHITECTURE] = ""
    title: Annotated[str, _ARCHITECTURE] = ""
    searches: Annotated[bool, _ARCHITECTURE] = False
    mixes_alone: Annotated[bool, _MIXER] = False
    mixes_labels: Annotated[bool, _MIXER] = False
    without_attack: Annotated[bool, _EVALUATOR] = False
    without_threat: Annotated[bool, _EVALUATOR] = False
    sees_through_masking: Annotated[bool, _EVALUATOR] = False
    own_images: Annotated[bool, _DATASET] = False
    given_by: Annotated[str, _DATASET] = ""
    image: Annotated[tuple[int, int, int] | None, _DATASET] = None
    classes: Annotated[int | None, _DATASET] = None
    train_images: Annotated[int | None, _DATASET] = None
    test_images: Annotated[int | None, _DATASET] = None


def checked_declaration(family: str, declared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a member declares, checked.

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
