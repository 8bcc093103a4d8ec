"""Names of the corruptions in the published files of CIFAR-10-C, CIFAR-100-C and ImageNet-C."""

from collections.abc import Sequence

from robustcli.errors import RobustCliError, suggest

BENCHMARK = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
_SEVERITIES = (1, 2, 3, 4, 5)


def check_corruptions(kinds: Sequence[str], severities: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return kinds and severities without duplicates, by default those of the benchmark.

    Raises:
        RobustCliError: there is no such kind or severity.
    """
    for kind in kinds:
        if kind not in (*BENCHMARK, *EXTRA):
            raise RobustCliError(f"data.kinds: there is no corruption '{kind}'{suggest(kind, (*BENCHMARK, *EXTRA))}")
    for severity in severities:
        if severity not in _SEVERITIES:
            raise RobustCliError(f"data.severities: found {severity}; expected 1 to 5")
    return tuple(dict.fromkeys(kinds or BENCHMARK)), tuple(dict.fromkeys(severities or _SEVERITIES))
