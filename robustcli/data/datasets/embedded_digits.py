"""The handwritten digits of scikit-learn, in the train and test part of all data sets of digits."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from robustcli.data.datasets import TensorSplit
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError

_TEST_SIZE = 360


def embedded_digits() -> tuple[TensorSplit, TensorSplit]:
    """Return the train and test part: images (n, 1, 8, 8) with pixels v / 16, exact in float32, and digits.

    The file is read directly, because importing scikit-learn takes as long as importing torch.

    Raises:
        RobustCliError: scikit-learn or its file is missing.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise RobustCliError("data.name: 'digits' are included in scikit-learn, which is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file; expected the digits that scikit-learn includes")
    # Rows of 64 pixels and the digit.
    table = np.loadtxt(path, delimiter=",")
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8).float() / 16
    labels = torch.from_numpy(table[:, -1]).long()
    order = fixed_order(len(labels))
    test, train = order[:_TEST_SIZE], order[_TEST_SIZE:]
    return TensorSplit(images[train], labels[train]), TensorSplit(images[test], labels[test])
