"""Try the smallest batch of an epoch before training starts."""

from copy import deepcopy
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from robustcli.data.splits import Data
from robustcli.data.targets import Labels
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.runtime import ranks
from robustcli.runtime.ranks import Slice
from robustcli.specs.settings import TrainSettings
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.model import TrainingModel

# Error message of torch's batch norms for a batch with one value per channel.
_TOO_FEW = "Expected more than 1 value per channel"


def rehearse_smallest_batch(
    defense: Defense,
    network: nn.Module,
    optimizer: Optimizer,
    data: Data,
    settings: TrainSettings,
    threat: ThreatModel,
    *,
    split_in_two: bool,
) -> None:
    """Make one update of a copy of the network if some batch holds a single image.

    A batch norm cannot normalize one image whose feature maps have one pixel. Only the method knows which layers it
    calls with how many images, so the update itself is tried.

    Args:
        split_in_two: whether every batch alternates between images of two fixed halves.

    Raises:
        RobustCliError: a batch norm rejects the batch.
    """
    count = data.smallest_batch(settings.batch_size, settings.drop_last, split_in_two=split_in_two)
    if not settings.sync_batch_norm:
        # The last process has the smallest slice.
        count = len(Slice.of(count, 2 if split_in_two else 1, ranks.world() - 1))
    if count > (2 if split_in_two else 1) or not settings.epochs:
        return
    x, y = data.evaluation("train", count)
    network, optimizer = deepcopy((network, optimizer))
    noise = StreamNoise.on(x.device).reseed(0, "rehearsal")
    step = defense.start(TrainingModel(network.train(), replace(settings, compile=False), x.device), optimizer, noise)
    try:
        step(x, Labels.of(y), threat, Progress(0, 1, settings.epochs))
    except ValueError as error:
        if _TOO_FEW not in str(error):
            raise
        total = data.sizes.train
        raise RobustCliError(
            f"train.batch_size: {total} training images in batches of {settings.batch_size} leave a last batch of "
            f"{count}, which is too small for the batch norms of this network; "
            + ("write train.drop_last: true" if total > settings.batch_size else "use more images in a batch")
        ) from error
