"""Fixtures that call `robust` in this process or in a new one, with a tiny spec."""

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import typer.main
from shared import shared
from shell import TINY, Outcome, Robust, environment

from robustcli.cli.main import main
from robustcli.cli.progress import Screen
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.runs import RunFolder
from robustcli.workflows.train import run_experiment

_built_once = cache(typer.main.get_command)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands store results below the working directory, not in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny spec as a file in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def robust(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Robust:
    """Calls `robust` in this process, where torch is already imported; other exceptions than an exit fail the test."""

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["robust", *map(str, words)])
        monkeypatch.setattr(typer.main, "get_command", _built_once)
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture
def robust_process() -> Robust:
    """Calls `robust` in a new process, in `cwd`."""

    def call(*words: object, cwd: Path, env: Mapping[str, str] = {}) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "robustcli", *map(str, words)],
            cwd=cwd,
            env=environment(env),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The finished run of the tiny spec, for tests that only read."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    spec = ExperimentSpec.read(folder / "tiny.yaml")
    return run_experiment(spec, folder / "runs", Screen(is_quiet=True))


@pytest.fixture(scope="session")
def well_trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose network withstands some attacks and not others, for tests that only read."""

    def train(folder: Path) -> None:
        (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
        spec = ExperimentSpec.read(folder / "tiny.yaml", ["train.epochs=5", "data.train_size=1200"])
        run_experiment(spec, folder / "runs", Screen(is_quiet=True))

    (path,) = shared(tmp_path_factory, "well_trained", train).glob("runs/*/*")
    return RunFolder(path)
