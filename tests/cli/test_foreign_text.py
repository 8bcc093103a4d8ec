"""Damaged specs and damaged files of a run end with exit code 0, 1 or 2, never with a traceback."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shell import TINY, Robust

from robustcli.store.runs import RunFolder

pytestmark = pytest.mark.slow

# Values that have crashed readers before.
MARKS = (
    "[",
    "]",
    "{",
    "}",
    ":",
    "- ",
    "&a ",
    "*a",
    "<<: *b",
    "'",
    '"',
    "#",
    "|",
    ">",
    "~",
    "!!python/object:os.system ",
)
WORDS = ("1e999", "-1", "8/0", "9" * 40, "null", "0x1F", ".nan", "true", "2026-11-30", "\t", "\x00", "é", "a" * 300)
TOKENS = st.sampled_from(MARKS + WORDS)
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), TOKENS), min_size=1, max_size=4)
together = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(text: str, changes: list[tuple[float, int, str]]) -> str:
    """Text in which some places are replaced."""
    for place, count, token in changes:
        at = int(place * len(text))
        text = text[:at] + token + text[at + count :]
    return text


@together
@given(changes=CHANGES)
def test_specs(robust: Robust, tmp_path: Path, changes: list[tuple[float, int, str]]) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(changed(TINY, changes), encoding="utf-8")
    said = robust("validate", "spec.yaml")
    assert said.code in (0, 2), said.err
    assert "Traceback" not in said.out + said.err


@together
@given(
    file=st.sampled_from(
        ["results.json", "provenance.json", "spec.yaml", "train.jsonl", "evaluations/*.json", "evaluations/*.csv"]
    ),
    changes=CHANGES,
    end=st.one_of(st.none(), st.floats(0, 1)),
)
def test_files_of_a_run(
    robust: Robust,
    tmp_path: Path,
    trained: RunFolder,
    file: str,
    changes: list[tuple[float, int, str]],
    end: float | None,
) -> None:
    root = tmp_path / "runs"
    shutil.rmtree(root, ignore_errors=True)
    folder = root / trained.path.parent.name / trained.path.name
    shutil.copytree(trained.path, folder)
    path = sorted(folder.glob(file))[0]
    before = path.read_text(encoding="utf-8")
    text = changed(before, changes)
    path.write_text(text if end is None else text[: int(end * len(text))], encoding="utf-8")
    for words in (
        ("runs",),
        ("report", "runs"),
        ("results", folder),
        ("verify", folder),
        ("eval", folder, "--attack", "clean"),
    ):
        said = robust(*words)
        assert said.code in (0, 1, 2), f"{words}: {said.err}"
        assert "Traceback" not in said.out + said.err, f"{words}: {said.err}"
