"""Load an exported folder in a new process and check it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import robustcli
from robustcli.errors import RobustCliError
from robustcli.models.model import test_images
from robustcli.runtime.device import choose_device
from robustcli.store.evaluation_files import EvaluationFiles
from robustcli.workflows.verify import evaluated_model
from robustcli.workflows.verify_evaluation import Finding, verify


def recheck(folder: Path, key: str, run: Path, overrides: Sequence[str], checkpoint: str | None, device: str) -> str:
    """Build the network with the folder's model.py in a new process and check an evaluation in the folder.

    Weights, images, clean predictions, counts and adversarial examples are checked as `robust verify` does.

    Args:
        folder: the exported folder.
        key: name of the evaluation.
        run, overrides, checkpoint: identify the images of the evaluation.
        device: auto, cpu, cuda or cuda:i.

    Returns:
        What was checked, as text.

    Raises:
        RobustCliError: the network cannot be built, or is not the evaluated one.
    """
    roots = [str(Path(robustcli.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        # -B: importing model.py must not write files next to it.
        [sys.executable, "-B", "-m", "robustcli.workflows.export.recheck"],
        input=json.dumps([str(folder), key, str(run), [*overrides], checkpoint, device]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RobustCliError(f"the exported network cannot be loaded in a new process: {last}")
    found = Finding(**json.loads(done.stdout.splitlines()[-1]))
    if found.problems:
        lines = "\n  ".join(found.problems)
        raise RobustCliError(f"the exported network is not the one that was evaluated:\n  {lines}")
    return found.checked


def _check(
    path: str, key: str, run: str, overrides: Sequence[str], checkpoint: str | None, device_name: str
) -> Finding:
    """Check the folder; this runs in the new process."""
    folder, device = Path(path), choose_device(device_name)
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.build().to(device)
    if network.training:
        return Finding(key, ["model.py: the network is in train mode"], "nothing")
    model = evaluated_model(Path(run), overrides, checkpoint)
    x, y = test_images(model.defaults, device).images("test")
    return verify(EvaluationFiles(folder, key), network, x, y)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_check(*json.load(sys.stdin)))))
    except RobustCliError as error:
        sys.exit(" ".join(str(error).split()))
