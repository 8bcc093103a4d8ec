"""Narrow terminals, closed pipes, links to nowhere and files of odd kinds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import Robust, environment

from robustcli.store.runs import RunFolder


def test_a_narrow_terminal_gets_every_column(
    robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    said = robust("results", trained.path).require(0).out
    header = said.splitlines()[1:3]
    for word in ("evaluat", "threat", "clean %", "robust % [95 %]", "verdict"):
        assert any(word in line for line in header), said
    assert "robustbench-cifar10-linf" in robust("list", "presets").require(0).out


@pytest.mark.parametrize("words", [("list",), ("explain",), ("show", "trades")])
def test_a_pipe_that_is_closed_early_is_not_a_failed_check(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "robustcli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_spec_that_is_no_file_is_refused_with_the_reason(robust: Robust, tiny: Path) -> None:
    robust("validate", "-").require(2, "-: not a file, and a spec is read more than once; write it into a file")
    os.mkfifo("pipe.yaml")
    robust("validate", "pipe.yaml").require(2, "pipe.yaml: not a file")
    robust("train", "/dev/null").require(2, "/dev/null: not a file")
    Path("away.yaml").symlink_to("gone.yaml")
    robust("validate", "away.yaml").require(2, "away.yaml: a link to gone.yaml, which does not exist")
    Path("circle").symlink_to("circle")
    robust("validate", "circle").require(2, "circle: a link to circle, which does not exist")
    Path("near.yaml").symlink_to(tiny)
    robust("validate", "near.yaml").require(0, "near.yaml: valid")


def test_a_character_that_yaml_does_not_allow_is_one_line(robust: Robust, tiny: Path) -> None:
    tiny.write_text("name: a\0b\n")
    said = robust("validate", tiny).require(2, "unacceptable character #x0000")
    assert len(said.err.splitlines()) == 2


def test_more_processes_than_processors_are_refused(
    robust: Robust, trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("robustcli.workflows.evaluate.in_processes", lambda *_: pytest.fail("started processes"))
    words = ("eval", trained.best, "--attack", "fgsm", "-n", 5, "--device", "cpu", "--workers", 3)
    robust(*words).require(2, "--workers 3: the work is done on the CPU, and this machine has 2 processors")


def test_a_network_too_large_to_count_is_out_of_memory(robust: Robust) -> None:
    robust("show", "resnet18", "width=99999999").require(2, "error: out of memory (", "a smaller network")


def test_files_in_the_place_of_folders_and_the_other_way_round(robust: Robust, trained: RunFolder, tiny: Path) -> None:
    Path("folder.html").mkdir()
    robust("status", "--runs", tiny).require(2, "found a file; expected a folder")
    robust("report", trained.path, "--html", "folder.html").require(2, "--html: folder.html: is a folder")
    robust("pareto", trained.path, "--out", "folder.html").require(2, "--out: folder.html: is a folder")
