"""Networks of parts that run one after the other, under the names that public checkpoints have."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

# (input channels, width, stride) -> a block.
NewBlock = Callable[[int, int, int], nn.Module]


class Chain(nn.Module):
    """Features, their mean over all pixels, and a classifier.

    Args:
        features: parts by name, in the order in which they run.
        classifier: the last part, by its name.
    """

    def __init__(self, features: Mapping[str, nn.Module], **classifier: nn.Module) -> None:
        super().__init__()
        for name, part in {**features, **classifier}.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        *features, classifier = (part for part in self._modules.values() if part is not None)
        for part in features:
            x = part(x)
        logits: Tensor = classifier(x.mean((2, 3)))
        return logits


def stages(
    new: NewBlock,
    inputs: int,
    depths: Sequence[int],
    widths: Sequence[int],
    strides: Sequence[int],
    expansion: int = 1,
) -> list[list[nn.Module]]:
    """Return the blocks of every stage; the first block of a stage has its stride.

    Args:
        new: makes a block with `expansion` times its width as output channels.
        inputs: channels of the features before the first stage.
        depths: blocks of each stage.
        widths: width of each stage.
        strides: stride of each stage.
    """
    found = []
    for depth, width, stride in zip(depths, widths, strides, strict=True):
        blocks = []
        for number in range(depth):
            blocks.append(new(inputs, width, stride if number == 0 else 1))
            inputs = expansion * width
        found.append(blocks)
    return found


def named(prefix: str, made: Iterable[list[nn.Module]], first: int = 1) -> dict[str, nn.Module]:
    """Return stages by their names, such as layer1."""
    return {f"{prefix}{number}": nn.Sequential(*blocks) for number, blocks in enumerate(made, first)}


def doubling(width: int) -> list[int]:
    """Return the widths of four stages, each twice as wide as the one before."""
    return [width * 2**number for number in range(4)]
