"""Every `robust` command in the README: the command, its options and the specs it names exist."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import pytest
import typer.main
from shell import Robust

from robustcli.cli.main import app
from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.specs import experiments
from robustcli.specs.grid import read_grid
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_yaml
from robustcli.workflows.sweep_spec import Sweep

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
AGENTS = ROOT / "AGENTS.md"
CLUSTER = ROOT / "experiments" / "CLUSTER.md"
DOCUMENTS = [
    README,
    AGENTS,
    CLUSTER,
    *(ROOT / name for name in ("CONTRIBUTING.md", "experiments/README.md")),
    *(ROOT / "experiments" / "results" / name for name in ("README.md", "bench/README.md")),
]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Line:
    """One command of the README.

    Args:
        number: its line in the file.
        words: as a shell splits them, without the program's name.
    """

    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.number}: robust {' '.join(self.words)}"


def shell_lines(document: Path = README) -> list[tuple[int, str]]:
    """Lines of blocks marked sh or bash, with continuations joined and without prompts and comments."""
    found = []
    language, waiting = None, ""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"^\s*```\s*(\w*)", line)
        if fence:
            language = None if language is not None else fence.group(1)
        elif language in ("sh", "bash", "shell", "console"):
            text = waiting + line.strip().removeprefix("$ ")
            if text.endswith("\\"):
                waiting = text.removesuffix("\\") + " "
                continue
            waiting = ""
            found.append((number, text))
    return found


def robust_lines(document: Path = README) -> list[Line]:
    lines = []
    for number, text in shell_lines(document):
        for part in re.split(r"\s*(?:&&|;|\|)\s*", text):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "robust":
                lines.append(Line(number, tuple(words[1:])))
            elif words[1:3] == ["-m", "robustcli"]:
                lines.append(Line(number, tuple(words[3:])))
    return lines


LINES = robust_lines()


def test_the_readme_shows_commands() -> None:
    assert {line.words[0] for line in LINES} >= {"train", "eval", "list", "show", "validate", "reproduce", "report"}


@pytest.mark.parametrize("line", [*LINES, *robust_lines(AGENTS), *robust_lines(CLUSTER)], ids=str)
def test_a_command_of_the_documents_can_be_parsed(line: Line) -> None:
    name, *words = line.words
    if name.startswith("-"):
        assert name in ("--help", "--version")
        return
    assert name in COMMANDS, f"{line}: there is no command {name}"
    if "--help" in words:
        return
    command = COMMANDS[name]
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"README.md:{line}: there is no command {name}"
        command = command.commands[name]
    # Parsing checks options and arguments without running anything.
    command.make_context(f"robust {name}", list(words), resilient_parsing=False)


def marked(line: Line) -> Any:
    """Whether a command builds every architecture, which takes long."""
    return pytest.param(line, marks=[pytest.mark.slow] if "--max-parameters" in line.words else [])


@pytest.mark.parametrize("line", [*map(marked, LINES)], ids=str)
def test_what_a_command_of_the_readme_names_exists(line: Line, robust: Robust) -> None:
    name, *words = line.words
    plain = [word for word in words if not word.startswith("-")]
    # A name in capitals is a placeholder.
    is_own = [word for word in plain if word.isupper()]
    if name in ("train", "reproduce") and plain[0] not in is_own:
        spec, *overrides = plain
        overrides = [override for override in overrides if "=" in override]
        if spec in experiments.findings():
            Sweep.read(experiments.find(spec), overrides)
        elif not _is_made_by_an_earlier_line(line, spec):
            for _, chosen in read_grid(overrides).rows():
                ExperimentSpec.read(experiments.find(spec), chosen)
    elif name == "validate" and "--schema" not in words:
        for spec in plain:
            if spec not in is_own and not _is_made_by_an_earlier_line(line, spec) and "*" not in spec:
                experiments.find(spec)
    elif name == "cp":
        assert plain[0] in experiments.names()
    elif name == "list" or name == "show":
        robust(*line.words).require(0)
    elif name == "eval" and "--attack" in words:
        for attack in words[words.index("--attack") + 1].split(","):
            assert attack in (*catalog("evaluators"), *catalog("attacks")) or attack.isupper()


def _is_made_by_an_earlier_line(line: Line, spec: str) -> bool:
    """Whether the file exists for a reader: copied by an earlier command, or written as the text says."""
    if any(other.words[0] == "cp" and other.words[-1] == spec and other.number < line.number for other in LINES):
        return True
    # Only bare names: files in folders must be in the checkout.
    commands = {other.number for other in LINES}
    text = README.read_text(encoding="utf-8").splitlines()
    said = "\n".join(words for number, words in enumerate(text, 1) if number not in commands)
    return "/" not in spec and spec.endswith(".yaml") and spec in said


def test_a_spec_of_the_readme_is_valid() -> None:
    text = README.read_text(encoding="utf-8")
    for block in re.finditer(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        source = f"README.md:{text[: block.start()].count(chr(10)) + 1}"
        value = parse_yaml(block.group(1), source).value
        if isinstance(value, dict) and {"name", "train"} <= set(value):
            ExperimentSpec.parse(block.group(1), source)


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    targets |= {f"reproduce-{name.replace('/', '-')}" for name in experiments.names()}
    for number, text in shell_lines():
        for part in re.split(r"\s*(?:&&|;|\|)\s*", text):
            words = shlex.split(part, comments=True)
            for word in words[1:] if words[:1] == ["make"] else []:
                assert "=" in word or word.startswith("-") or word in targets, f"README.md:{number}: make {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not re.match(r"^[a-z]+:", target):
            assert (document.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 300


def test_every_command_is_mentioned() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"robust {name}" not in text] == []
    assert [name for name in FAMILIES if name not in text.lower()] == []


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_example_of_the_readme_for_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in python_blocks() if "robustcli.evaluate" in block)
    # The same calls with fewer epochs and images.
    for whole, less in (("train__epochs=20", "train__epochs=6, train__eps_warmup=3"), ("examples=100", "examples=12")):
        assert whole in code
        code = code.replace(whole, less)
    names: dict[str, Any] = {}
    exec(code, names)
    result = names["result"]
    assert names["x_adv"].shape == names["x"].shape
    assert 0 < result.robust < result.clean
    assert (tmp_path / "runs").is_dir()
    assert f"{result.verdict}" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.slow
def test_the_defense_of_the_readme_trains(tmp_path: Path) -> None:
    (code,) = (block for block in python_blocks() if "DEFENSES.register" in block)
    (tmp_path / "readme_plugin.py").write_text(code, encoding="utf-8")
    info = tmp_path / "readme_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: readme-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustcli]\nreadme = readme_plugin\n")
    spec = ("smoke/trades", "train.epochs=1", "evaluate={clean: clean}", "-q")
    defense = "defense={name: brier_at, steps: 2, weights: {name: awp, gamma: 0.01}}"
    done = forked.robust("train", *spec, defense, cwd=tmp_path, path=[tmp_path])
    assert (done.returncode, "finished" in done.stdout) == (0, True), done
