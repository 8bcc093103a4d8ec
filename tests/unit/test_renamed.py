"""Former names in specs give one warning and keep their digests, fingerprints and results."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from stored_results import evaluation

from robustcli.errors import SpecError
from robustcli.evaluation.attack_choice import evaluator_of
from robustcli.evaluation.fingerprint import evaluator_text
from robustcli.evaluation.stored import plain_parameters
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.evaluations import parse_evaluation

SPEC = """\
name: renamed
data: digits
architecture: small_cnn
threat: {norm: linf, eps: 8/255}
defense: natural
train: {epochs: 1}
evaluate:
  union:
    name: worst_case
    WITNESSES: true
    members:
      - {name: UNDER, norm: l2, eps: 0.5, evaluator: {name: ATTACKED, attack: {name: pgd, steps: 3}}}
      - {name: autoattack, SCREEN: 50}
  transfer: {name: TRANSFERRED, source: other.pt, attack: fgsm}
"""
WORDS = {
    "ATTACKED": ("attacked", "attack"),
    "UNDER": ("under", "other_threat"),
    "TRANSFERRED": ("transferred", "transfer_attack"),
    "SCREEN": ("screen", "sample_first"),
    "WITNESSES": ("witnesses", "save_examples"),
}
# Recorded with the version that had the former names.
DIGEST = "efd8fbf4"


def text(which: int) -> str:
    written = SPEC
    for placeholder, words in WORDS.items():
        written = written.replace(placeholder, words[which])
    return written


def test_former_words_are_understood_with_one_warning_and_keep_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "former.yaml"
    path.write_text(text(0), encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        former = ExperimentSpec.read(path)
    (warning,) = caught
    assert str(warning.message).startswith(f"{path}: evaluate: ")
    for old, new in WORDS.values():
        assert f"'{old}' is now '{new}'" in str(warning.message)
    today = ExperimentSpec.parse(text(1), "today")
    assert former == today
    assert former.digest == today.digest == DIGEST


def test_what_a_program_wrote_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text(0), encoding="utf-8")
    assert ExperimentSpec.read_stored(path) == ExperimentSpec.parse(text(0), "a checkpoint")


def test_both_words_at_once_are_refused() -> None:
    both = text(1).replace("sample_first: 50", "sample_first: 50, screen: 50")
    with pytest.raises(SpecError, match=r"screen: unknown parameter of 'autoattack' in evaluators"):
        ExperimentSpec.parse(both, "both")


def test_names_of_results_are_not_words() -> None:
    spec = ExperimentSpec.parse(text(1).replace("  transfer:", "  screen:"), "the spec")
    assert list(spec.evaluate) == ["union", "screen"]


def test_fingerprints_have_the_former_words() -> None:
    chosen = ExperimentSpec.parse(text(1), "today").evaluate["union"]
    found = evaluator_text(chosen.name, plain_parameters(chosen))
    assert '"name": "under"' in found
    assert '"name": "attacked"' in found
    assert '"screen": 50' in found
    assert "sample_first" not in found


@pytest.mark.parametrize(
    ("name", "parameters", "today"),
    [
        ("attacked", {"attack": {"name": "pgd"}}, ("attack", {"attack": {"name": "pgd"}})),
        ("autoattack", {"screen": 5}, ("autoattack", {"sample_first": 5})),
    ],
)
def test_stored_results_are_read_with_the_words_of_today(
    name: str, parameters: dict[str, Any], today: tuple[str, dict[str, Any]]
) -> None:
    found = parse_evaluation(evaluation("1", evaluator=name, parameters=parameters, fingerprint={}), Path("x.json"))
    assert (found.evaluator, found.parameters) == today


def test_the_command_line_understands_former_words() -> None:
    with pytest.warns(UserWarning, match="'attacked' is now 'attack'"):
        assert evaluator_of("attacked", {"attack": "fgsm"}).name == "attack"


REGULARIZED = """\
name: regularized
data: digits
architecture: small_cnn
threat: {norm: linf, eps: 8/255}
defense: {name: natural, KEY: {name: svc, clip: 1}}
train: {epochs: 1}
"""


def test_the_former_key_of_regularizers_is_understood_and_keeps_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(REGULARIZED.replace("KEY", "regulariser"), encoding="utf-8")
    with pytest.warns(UserWarning, match="defense: 'regulariser' is now 'regularizer'"):
        former = ExperimentSpec.read(path)
    # Stored specs are accepted without a warning.
    stored = ExperimentSpec.read_stored(path)
    # Overrides with either key change the value that the spec has.
    for key in ("regulariser", "regularizer"):
        with pytest.warns(UserWarning, match="is now 'regularizer'"):
            changed = ExperimentSpec.read(path, [f"defense.{key}.clip=0.5"])
        assert changed.defense.parameters["regularizer"].parameters["clip"] == 0.5
    path.write_text(REGULARIZED.replace("KEY", "regularizer"), encoding="utf-8")
    spec = ExperimentSpec.read(path)
    assert spec == former == stored
    # Recorded with the version that had the former name.
    assert spec.digest == "7038502a"
    assert ExperimentSpec.read(path, ["defense.regulariser.clip=0.5"]).digest == changed.digest
    path.write_text(REGULARIZED.replace("KEY: {", "regularizer: none, regulariser: {"), encoding="utf-8")
    with pytest.raises(SpecError, match=r"defense\.regulariser: unknown parameter"):
        ExperimentSpec.read(path)
