"""Commands in several processes of torchrun: which of them share their work, and which process prints."""

import os

from robustcli.errors import RobustCliError

# Commands whose work the processes of torchrun share.
SHARED = ("train", "reproduce", "eval")


def is_silent() -> bool:
    """Return True in every process of torchrun but the first, which prints for all."""
    is_one = os.environ.get("WORLD_SIZE", "") in ("", "1")
    return not is_one and os.environ.get("RANK", "") not in ("", "0")


def which_process() -> str:
    """Prefix of error messages of a process that is not the first one."""
    return f"process {os.environ['RANK']}: " if is_silent() else ""


def refuse_torchrun(command: str) -> None:
    """Raise for commands that several processes would only repeat."""
    if command in SHARED or os.environ.get("WORLD_SIZE", "") in ("", "1"):
        return
    from robustcli.runtime.ranks import share_of_torchrun

    if share_of_torchrun() is not None:
        instead = (
            "start it in as many processes as you like, which share its rows, or train one row with robust train "
            "--devices N"
            if command == "sweep"
            else "start it once"
        )
        raise RobustCliError(f"robust {command}: torchrun is for {', '.join(SHARED)}; {instead}")
