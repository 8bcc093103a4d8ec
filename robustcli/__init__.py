"""robust: adversarial training and evaluation from one YAML spec.

The functions of the Python API are imported when they are first used, because importing torch takes seconds.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Result, Run, attack, evaluate, images, load, spec, train

__version__ = "0.1.0"
__all__ = ["Result", "Run", "__version__", "attack", "evaluate", "images", "load", "spec", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'robustcli' has no attribute '{name}'")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
