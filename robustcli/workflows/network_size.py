"""Parameters and multiply-accumulates of the network of a run."""

from pathlib import Path

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import Profile, profile_of
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import to_yaml
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.runs import RunFolder

# By architecture and shape of the images: the runs of a sweep share them.
_PROFILES: dict[tuple[str, ImageShape], Profile] = {}


def size_of_run(folder: Path) -> Profile | None:
    """Return the profile of the network of a run; None without a readable spec, or without the shape of its images."""
    run = RunFolder(folder)
    if not run.spec.is_file():
        return None
    try:
        spec = ExperimentSpec.read_stored(run.spec)
        member = spec.data.member
        if member.image and member.classes:
            shape = ImageShape(*member.image, member.classes)
        elif run.best.is_file():
            shape = ImageShape(*NetworkCheckpoint.read(run.best).shape)
        else:
            return None
        key = (to_yaml(spec.to_plain()["architecture"]), shape)
        if key not in _PROFILES:
            _PROFILES[key] = profile_of(spec.architecture, shape)
        return _PROFILES[key]
    except RobustCliError:
        return None
