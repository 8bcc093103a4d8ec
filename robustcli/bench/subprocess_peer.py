"""torchattacks as it comes: sampled in a process of its own, in which nothing of ours is set.

What this process does for itself, such as keeping freed memory, would help the other's loop here too.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any

import torch

from robustcli.bench.baselines import find_peer
from robustcli.bench.variants import Request, Variants, choose
from robustcli.measuring.counters import Counters
from robustcli.measuring.passes import Passes
from robustcli.measuring.timing import Stopwatch, Timed


class SubprocessPeer:
    """Samples of torchattacks' loop in another process, which waits while this one measures.

    Args:
        request: what is measured here; there it runs in fp32 and in the plain memory format.
        steps: gradient steps of the attack.
    """

    def __init__(self, request: Request, steps: int) -> None:
        words = {"request": asdict(request.plain()), "steps": steps, "threads": torch.get_num_threads()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._write(json.dumps(words))

    def __call__(self, repeats: int) -> float:
        return float(self._answer(repeats))

    def counters(self) -> Counters:
        """Its passes, and the memory that it takes there."""
        found = self._answer(0)
        return Counters(Passes(**found["passes"]), found["peak_bytes"])

    def _answer(self, repeats: int) -> Any:
        self._write(str(repeats))
        answer = _pipe(self._process.stdout).readline()
        assert answer, "the process that measures torchattacks ended; what it wrote is above"
        return json.loads(answer)

    def __enter__(self) -> "SubprocessPeer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # Its input ends, and so does it.

    def _write(self, line: str) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write(f"{line}\n")
        pipe.flush()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def main() -> None:
    """Answer every line of the input, a number of repeats, with the seconds per run; 0 with what is not timed."""
    words = json.loads(sys.stdin.readline())
    torch.set_num_threads(words["threads"])
    request = Request(**words["request"])
    variants = Variants(request, choose(request)[0])
    torchattacks = find_peer("torchattacks", [])
    assert torchattacks is not None
    network, step = variants.torchattacks(torchattacks, words["steps"])
    sample = Timed(step, Stopwatch(variants.device))
    for line in sys.stdin:
        repeats = int(line)
        answer = sample(repeats) if repeats else asdict(Counters.of(network, step, request.batch_size, variants.device))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
