"""No transformation."""

from dataclasses import dataclass

from torch import Tensor

from robustcli.preprocessors import PREPROCESSORS, Preprocessor


@PREPROCESSORS.register("none")
@dataclass(frozen=True, kw_only=True)
class NoPreprocessor(Preprocessor):
    """Leave the images as they are.

    Reference: none; the absence of a preprocessor.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return x
