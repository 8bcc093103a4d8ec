"""The Python API: `load`, `images`, `attack`, `evaluate`, `train` and `spec`, which the package itself re-exports.

Images are (n, c, h, w) with pixels in [0, 1] and labels are class numbers, as NumPy arrays or tensors. Models are torch
modules or other callables that map such images to logits; any normalization belongs inside the model. Networks that a
callable refers to are set to eval mode, as modules are. Seeds are integers, and equal seeds give equal results whatever
the batch size. Whatever is wrong with the input is raised as a `robustcli.errors.RobustCliError`.
"""

from robustcli.api.evaluation import Result, attack, evaluate, images
from robustcli.api.models import load
from robustcli.api.training import Run, spec, train

__all__ = ["Result", "Run", "attack", "evaluate", "images", "load", "spec", "train"]
