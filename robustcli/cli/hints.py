"""Words that people type by instinct: other names of what is there, and what to use instead of what is not."""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

import typer

from robustcli.errors import RobustCliError, suggest
from robustcli.specs.renamed import UNTIL

# Commands by other names, and the second words of a command.
_ALIASES = {"ls": "runs", "list recipes": "experiments", "reproduce --against": "--runs"}
# Commands, or a command with its next word or an option, that do not exist, and what to use.
_INSTEAD = {
    "check": "use `robust inspect FILE`; `robust eval` checks the network before every evaluation",
    "plot": "use `robust pareto --out FILE.svg` for accuracy against cost, and `robust diagnose --picture` for curves",
    "board": "use `robust report FOLDER... --html board.html`: one page with all models in one sortable table",
    "requeue": "jobs are queued again by themselves; `robust submit` with the same spec resumes one that has ended",
    "gc": "a run keeps only best.pt and last.pt, and a finished evaluation no journal; remove whole folders",
    "init": "use `robust cp NAME FILE` to start from a shipped spec",
    "test": "use `robust eval`, or `robust check-member NAME` for a member of your own",
    "attack": "use `robust eval MODEL --attack NAME`",
    "submit robustbench": "use `robust export robustbench FOLDER OUT`, which writes the files of an entry",
    "submit attack": "use `robust new attack NAME --package FOLDER`, which writes a package that others can install",
    "compare --paired": "every comparison is paired, image by image; leave --paired out",
    "train --smoke": "use train.epochs=1 data.train_size=256; `robust check-member NAME` tests a member in seconds",
    "sweep --slurm": "add --engine slurm, as in --engine slurm --slurm PARTITION --time 12:00:00",
    "runs --sweep": "use --where name=NAME",
    "eval --n": "write -n N or --examples N",
    "sweep --jobs": "run the same command several times at once; each takes rows that no other has",
    "train --gpus": "write --devices N",
    "report --latex": "use --markdown, --csv or --json",
    "report --format": "use --markdown, --csv or --json",
}
# Former names of families and kinds of members.
_FORMER = {"regulariser": "regularizer", "regularisers": "regularizers"}
# Commands that take values of the spec as KEY=VALUE, and keys that are often written as options.
_WITH_SPEC = ("train", "reproduce", "sweep", "plan", "validate", "submit")
_KEYS = {
    "architecture": "architecture",
    "arch": "architecture",
    "batch-size": "train.batch_size",
    "data": "data.name",
    "defense": "defense",
    "device": "train.device",
    "epochs": "train.epochs",
    "eps": "threat.eps",
    "lr": "train.lr",
    "norm": "threat.norm",
    "precision": "train.precision",
    "root": "data.root",
    "seed": "seed",
}


def usual(words: Sequence[str]) -> list[str]:
    """Words of the command line with the usual names of commands and of the parts of a spec.

    Raises:
        RobustCliError: they ask for something that there is not, by a name for which another command does it.
    """
    found = [re.sub(r"^arch(?=[.=])", "architecture", word) for word in words]
    if not found:
        return found
    command = found[0] = _ALIASES.get(found[0], found[0])
    found[1:] = [_ALIASES.get(f"{command} {word}", word) for word in found[1:]]
    options = [word.partition("=")[0] for word in found[1:] if word.startswith("--")]
    for key in (command, f"{command} {found[1] if len(found) > 1 else ''}", *(f"{command} {one}" for one in options)):
        if key in _INSTEAD and not ({"--engine"} & set(options)):
            raise RobustCliError(f"robust {key}: there is no such {_kind(key)}; {_INSTEAD[key]}")
    for option in options if command in _WITH_SPEC else ():
        name = option.removeprefix("--")
        wanted = name if "." in name else _KEYS.get(name.replace("_", "-"))
        if wanted is not None:
            given = [word.partition("=")[2] for word in found if word.startswith(f"{option}=")]
            given += [two for one, two in pairwise(found) if one == option]
            value = given[0] if given else "VALUE"
            raise RobustCliError(f"robust {command} {option}: there is no such option; write {wanted}={value}")
    for option, value in pairwise(found):
        if option == "--json" and value.endswith(".json") and command in ("eval", "diagnose"):
            raise RobustCliError(f"--json {value}: --json prints to the terminal; write --out {value} for a file")
    return found


def current_word(word: str) -> str:
    """Return the name of a family or of a kind of member; a former one is accepted with a warning."""
    current = _FORMER.get(word, word)
    if current != word:
        typer.echo(f"warning: '{word}' is now '{current}'; the former word is understood until {UNTIL}", err=True)
    return current


def family_named(word: str, known: Collection[str], option: str = "") -> str:
    """Return the family that a word names.

    Args:
        option: start of the error message.

    Raises:
        RobustCliError: there is no such family.
    """
    name = current_word(word)
    if name not in known:
        raise RobustCliError(f"{option}there is no family '{word}'{suggest(word, known)}")
    return name


def _kind(key: str) -> str:
    return "option" if " --" in key else "command"
