"""Measure torchattacks in a separate process without any settings of this project.

Settings of this process, such as keeping freed memory, would make torchattacks faster too.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any

import torch

from robustcli.bench.baselines import find_package
from robustcli.bench.variants import Request, Variants, choose
from robustcli.measuring.counters import Counters
from robustcli.measuring.timing import Stopwatch, Timed
from robustcli.store.passes import Passes


class SubprocessPeer:
    """Sample of torchattacks' loop in another process, which waits while this one measures.

    Args:
        request: options of the benchmark; the other process uses fp32 and the default memory format.
        steps: gradient steps of the attack.
    """

    def __init__(self, request: Request, steps: int) -> None:
        settings = {"request": asdict(request.plain()), "steps": steps, "threads": torch.get_num_threads()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._write(json.dumps(settings))

    def __call__(self, repeats: int) -> float:
        return float(self._answer(repeats))

    def counters(self) -> Counters:
        """Return its passes and its peak memory."""
        found = self._answer(0)
        return Counters(Passes(**found["passes"]), found["peak_bytes"])

    def _answer(self, repeats: int) -> Any:
        self._write(str(repeats))
        answer = _pipe(self._process.stdout).readline()
        assert answer, "the process that measures torchattacks ended; its output is above"
        return json.loads(answer)

    def __enter__(self) -> "SubprocessPeer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its input, so it ends

    def _write(self, line: str) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write(f"{line}\n")
        pipe.flush()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def main() -> None:
    """Answer each line of input, a number of repeats, with the seconds per run, and 0 with the counters."""
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    request = Request(**settings["request"])
    variants = Variants(request, choose(request)[0])
    torchattacks = find_package("torchattacks", [])
    assert torchattacks is not None
    network, step = variants.torchattacks(torchattacks, settings["steps"])
    sample = Timed(step, Stopwatch(variants.device))
    for line in sys.stdin:
        repeats = int(line)
        answer = sample(repeats) if repeats else asdict(Counters.of(network, step, request.batch_size, variants.device))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
