"""`robust` in processes that are forked from one that has imported torch already.

Importing torch in every process would take four seconds, which most tests do not need.
"""

import io
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from robustcli.registry.catalog import FAMILIES, catalog

_get_context = multiprocessing.get_context

# All slow imports; torch's optimizers import the second one on first use. Every process imports this file, thus pytest.
_HEAVY = [
    "pytest",
    "torch",
    "torch._dynamo",
    "sklearn.datasets",
    "rich._emoji_codes",
    "robustcli.cli.main",
    "robustcli.cli.progress",
    "robustcli.reports.tables",
    "robustcli.workflows.evaluate",
    "robustcli.workflows.evaluate_on",
    "robustcli.workflows.sweep_spec",
    "robustcli.workflows.train",
]


def processes() -> ForkServerContext:
    """Return the context of processes forked from one that has imported all members but not searched for plugins."""
    context = _get_context("forkserver")
    assert isinstance(context, ForkServerContext)
    members = [member.module for family in FAMILIES for member in catalog(family).values()]
    context.set_forkserver_preload([*_HEAVY, *members])
    return context


def fork_instead_of_spawning(patch: pytest.MonkeyPatch) -> None:
    """Replace spawned processes by forked ones, which need no imports."""
    patch.setattr(multiprocessing, "get_context", lambda _method: processes())


def process(work: Callable[..., None], *args: Any) -> BaseProcess:
    """Start such a process."""
    started = processes().Process(target=work, args=args)
    started.start()
    return started


def write_to(out: Path, err: Path) -> None:
    """Redirect the output of this process to two files, or to one."""
    output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output if err == out else os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)


def robust(*words: object, cwd: Path, path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Call `robust` in a new process, in `cwd`, with further folders on the import path."""
    return python("robustcli", *words, cwd=cwd, path=path)


def python(
    module: str, *words: object, cwd: Path, path: Sequence[Path] = (), text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a module as `python -m` does, with a text as standard input."""
    with TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        started = process(_work, module, [*map(str, words)], cwd, [*map(str, path)], text, out, err)
        started.join(300)
        assert started.exitcode is not None, "the process hangs"
        texts = [file.read_text(encoding="utf-8") for file in (out, err)]
        return subprocess.CompletedProcess(words, started.exitcode, *texts)


def _work(module: str, words: list[str], cwd: Path, path: list[str], text: str, out: Path, err: Path) -> None:
    write_to(out, err)
    os.chdir(cwd)
    # Of the terminal that pytest was started from; readline, which pytest imports, hands it on.
    os.environ.pop("COLUMNS", None)
    sys.path[:0] = path
    sys.dont_write_bytecode = True
    sys.stdin = io.StringIO(text)
    torch.set_num_threads(1)
    sys.argv = [module, *words]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__")
