"""Freed memory is kept: passes take no new pages from the system, and results stay the same bit for bit."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

# In a new process, since settings of malloc cannot be undone.
CODE = """
import json, resource, sys
from fractions import Fraction
import torch
from robustcli.data.targets import Labels
from robustcli.optimization.progress import Progress
from robustcli.defenses.pgd_at import pgd_at
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel

torch.set_num_threads(1)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def passes():
    begun = faults()
    for _ in range(4):
        kept = [torch.ones(4, 2**20) for _ in range(8)]  # 128 MiB, in blocks of 16
        del kept
    return faults() - begun

def weights():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2),
        torch.nn.Flatten(), torch.nn.LazyLinear(10),
    )
    x, y = torch.rand(64, 3, 16, 16), torch.arange(64) % 10
    model(x)
    noise = StreamNoise.on(x.device).reseed(0)
    step = pgd_at(steps=3).start(model, torch.optim.SGD(model.parameters(), lr=0.1), noise)
    for _ in range(3):
        step(x, Labels.of(y), ThreatModel("linf", Fraction(8, 255)), Progress(0, 1, 1))
    return model.state_dict()

found = {"faults_before": passes()}
before = weights()
found["is_set"] = keep_freed_memory()
passes()
# The system may take back a page that rests for a while.
found["faults_after"] = min(passes() for _ in range(3))
after = weights()
found["is_equal"] = all(torch.equal(before[name], after[name]) for name in before)
print(json.dumps(found))
"""


def test_freed_memory_is_kept_and_results_do_not_change() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["is_equal"]
    # Only glibc's malloc has this setting.
    if platform.libc_ver()[0] == "glibc":
        assert found["is_set"]
        # 4 times 128 MiB: 131,072 pages of 4 KiB, or 256 of 2 MiB where the system gives those.
        assert found["faults_before"] > 200
        assert found["faults_after"] < 0.02 * found["faults_before"]
