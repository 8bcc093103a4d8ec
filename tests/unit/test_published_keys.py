"""Checkpoints written as RobustBench's classes name and shape their weights, read as `robust eval` reads them.

Names and shapes come from the pattern of each class and not from a network of this project.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from products import cover
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.errors import RobustCliError
from robustcli.models.find import find_model
from robustcli.models.key_families import recognize
from robustcli.models.model import ExternalModel
from robustcli.store.results import ModelRequest

CLASSES = 10
SHAPE = ImageShape(3, 32, 32, CLASSES)
Shapes = dict[str, tuple[int, ...]]


def conv(name: str, inputs: int, outputs: int, kernel: int, *, groups: int = 1, bias: bool = False) -> Shapes:
    return {
        f"{name}.weight": (outputs, inputs // groups, kernel, kernel),
        **({f"{name}.bias": (outputs,)} if bias else {}),
    }


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def scaled(name: str, channels: int) -> Shapes:
    """A layer norm, or the learned part of a batch norm."""
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def batch_norm(name: str, channels: int) -> Shapes:
    statistics = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return {**scaled(name, channels), **statistics, f"{name}.num_batches_tracked": ()}


def blocks_of(stem: int, widths: Sequence[int], depths: Sequence[int]) -> Iterator[tuple[int, int, int, int, bool]]:
    """Stage, block, channels in and out, and whether the block shrinks its map: first ones do, but the very first."""
    inputs = stem
    for stage, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            yield stage, i, inputs, outputs, i == 0 and stage > 0
            inputs = outputs


def rn(depths: Sequence[int], width: int = 64, *, bottleneck: bool = False) -> Shapes:
    expansion = 4 if bottleneck else 1
    found = {**conv("conv1", 3, width, 3), **batch_norm("bn1", width)}
    widths = [width * 2**stage * expansion for stage in range(4)]
    for stage, i, inputs, outputs, shrinks in blocks_of(width, widths, depths):
        block, inner = f"layer{stage + 1}.{i}", outputs // expansion
        if bottleneck:
            found |= {**conv(f"{block}.conv1", inputs, inner, 1), **conv(f"{block}.conv2", inner, inner, 3)}
            found |= {**conv(f"{block}.conv3", inner, outputs, 1), **batch_norm(f"{block}.bn3", outputs)}
        else:
            found |= {**conv(f"{block}.conv1", inputs, inner, 3), **conv(f"{block}.conv2", inner, inner, 3)}
        found |= {**batch_norm(f"{block}.bn1", inner), **batch_norm(f"{block}.bn2", inner)}
        if shrinks or inputs != outputs:
            found |= {**conv(f"{block}.shortcut.0", inputs, outputs, 1), **batch_norm(f"{block}.shortcut.1", outputs)}
    return {**found, **linear("linear", widths[-1], CLASSES)}


def prn(depths: Sequence[int], width: int = 64, *, final: bool) -> Shapes:
    found = conv("conv1", 3, width, 3)
    widths = [width * 2**stage for stage in range(4)]
    for stage, i, inputs, outputs, shrinks in blocks_of(width, widths, depths):
        block = f"layer{stage + 1}.{i}"
        found |= {**batch_norm(f"{block}.bn1", inputs), **conv(f"{block}.conv1", inputs, outputs, 3)}
        found |= {**batch_norm(f"{block}.bn2", outputs), **conv(f"{block}.conv2", outputs, outputs, 3)}
        if shrinks or inputs != outputs:
            found |= conv(f"{block}.shortcut.0", inputs, outputs, 1)
    found |= batch_norm("bn", widths[-1]) if final else {}
    return {**found, **linear("linear", widths[-1], CLASSES)}


def dm_prn(depths: Sequence[int], width: int = 64) -> Shapes:
    found = conv("conv_2d", 3, width, 3)
    widths = [width * 2**stage for stage in range(4)]
    for stage, i, inputs, outputs, shrinks in blocks_of(width, widths, depths):
        block = f"layer_{stage}.{i}"
        found |= {**batch_norm(f"{block}.batchnorm_0", inputs), **conv(f"{block}.conv_2d_1", inputs, outputs, 3)}
        found |= {**batch_norm(f"{block}.batchnorm_1", outputs), **conv(f"{block}.conv_2d_2", outputs, outputs, 3)}
        if shrinks or inputs != outputs:
            found |= conv(f"{block}.shortcut", inputs, outputs, 3)
    return {**found, **batch_norm("batchnorm", widths[-1]), **linear("logits", widths[-1], CLASSES)}


@dataclass(frozen=True)
class Wide:
    """Names of parts in a class with three stages of pre-activation blocks."""

    stem: str
    block: str
    first: tuple[str, str]
    second: tuple[str, str]
    shortcut: str
    last: str
    classifier: str

    def shapes(self, widths: Sequence[int], depths: Sequence[int], stem: int = 16) -> Shapes:
        found = conv(self.stem, 3, stem, 3)
        for stage, i, inputs, outputs, shrinks in blocks_of(stem, widths, depths):
            block = self.block.format(stage, stage + 1, i)
            found |= {**batch_norm(f"{block}.{self.first[0]}", inputs)}
            found |= {**conv(f"{block}.{self.first[1]}", inputs, outputs, 3)}
            found |= {**batch_norm(f"{block}.{self.second[0]}", outputs)}
            found |= {**conv(f"{block}.{self.second[1]}", outputs, outputs, 3)}
            if shrinks or inputs != outputs:
                found |= conv(f"{block}.{self.shortcut}", inputs, outputs, 1)
        return {**found, **batch_norm(self.last, widths[-1]), **linear(self.classifier, widths[-1], CLASSES)}


TWO = (("bn1", "conv1"), ("bn2", "conv2"))
WRN = Wide("conv1", "block{1}.layer.{2}", *TWO, "convShortcut", "bn1", "fc")
RWRN = Wide("stem_conv", "blocks.{0}.layer.{2}", *TWO, "convShortcut", "bn1", "fc")
RRN = Wide("stem_conv", "blocks.{0}.layer.{2}", *TWO, "shortcut.0", "norm1", "fc")
DM_NAMES = (("batchnorm_0", "conv_0"), ("batchnorm_1", "conv_1"))
DM_WRN = Wide("init_conv", "layer.{0}.block.{2}", *DM_NAMES, "shortcut", "batchnorm", "logits")


def wide(of: Wide, depth: int, widen: int) -> Shapes:
    return of.shapes([16 * widen, 32 * widen, 64 * widen], [(depth - 4) // 6] * 3)


def with_dead_stage(shapes: Shapes) -> Shapes:
    dead = {f"sub_{key}": shape for key, shape in shapes.items() if key.startswith("block1.")}
    return {**shapes, **dead}


def with_shared_activation(shapes: Shapes) -> Shapes:
    """`activation.*` at the top and in every block."""
    blocks = sorted({key.partition(".bn2")[0] for key in shapes if ".bn2." in key})
    names = [f"{place}activation.{part}" for place in ("", *(f"{b}." for b in blocks)) for part in ("alpha", "beta")]
    return {**shapes, **dict.fromkeys(names, (1,))}


def ra_wrn(depths: Sequence[int], widths: Sequence[int], stem: int) -> Shapes:
    found = DM_WRN.shapes(widths, depths, stem)
    for stage, i, _, outputs, _ in blocks_of(stem, widths, depths):
        gate, squeezed = f"layer.{stage}.block.{i}.se", round(0.25 * outputs)
        found |= conv(f"{gate}.fc1", outputs, squeezed, 1, bias=True)
        found |= conv(f"{gate}.fc2", squeezed, outputs, 1, bias=True)
    return found


def ra_resnet(depths: Sequence[int], widths: Sequence[int], stem: int, classes: int) -> Shapes:
    found = {**conv("stem.stem.stem.0", 3, stem, 7), **batch_norm("stem.stem.stem.1", stem)}
    for stage, i, inputs, outputs, _ in blocks_of(stem, widths, depths):
        block, inner, squeezed = f"stages.stage{stage + 1}.stage{stage + 1}-block{i}", outputs // 4, inputs // 4
        found |= {**conv(f"{block}.F.a.0", inputs, inner, 1), **conv(f"{block}.F.b.0", inner, inner, 3, groups=2)}
        found |= {**batch_norm(f"{block}.F.b.1", inner), **batch_norm(f"{block}.F.c.1", outputs)}
        found |= conv(f"{block}.F.se.fc1", inner, squeezed, 1, bias=True)
        found |= {
            **conv(f"{block}.F.se.fc2", squeezed, inner, 1, bias=True),
            **conv(f"{block}.F.c.0", inner, outputs, 1),
        }
        if i == 0:
            found |= {**conv(f"{block}.proj.0", inputs, outputs, 1), **batch_norm(f"{block}.proj.1", outputs)}
    return {**found, **linear("fc", widths[-1], classes)}


def xcit(d: int, heads: int, depth: int) -> Shapes:
    found: Shapes = {"cls_token": (1, 1, d), **conv("pos_embed.token_projection", 64, d, 1, bias=True)}
    inputs = 3
    for number, width in zip((0, 2, 4, 6), (d // 8, d // 4, d // 2, d), strict=True):
        part = f"patch_embed.proj.{number}"
        found |= {**conv(f"{part}.0", inputs, width, 3), **batch_norm(f"{part}.1", width)}
        inputs = width
    for i in range(depth):
        block = f"blocks.{i}"
        for number in (1, 2, 3):
            found |= {f"{block}.gamma{number}": (d,), **scaled(f"{block}.norm{number}", d)}
        found |= {f"{block}.attn.temperature": (heads, 1, 1)}
        found |= {**linear(f"{block}.attn.qkv", d, 3 * d), **linear(f"{block}.attn.proj", d, d)}
        for name in ("conv1", "conv2"):
            found |= conv(f"{block}.local_mp.{name}", d, d, 3, groups=d, bias=True)
        found |= batch_norm(f"{block}.local_mp.bn", d)
        found |= {**linear(f"{block}.mlp.fc1", d, 4 * d), **linear(f"{block}.mlp.fc2", 4 * d, d)}
    for i in (0, 1):
        block = f"cls_attn_blocks.{i}"
        for number in (1, 2):
            found |= {f"{block}.gamma{number}": (d,), **scaled(f"{block}.norm{number}", d)}
        for name in ("q", "k", "v", "proj"):
            found |= linear(f"{block}.attn.{name}", d, d)
        found |= {**linear(f"{block}.mlp.fc1", d, 4 * d), **linear(f"{block}.mlp.fc2", 4 * d, d)}
    return {**found, **scaled("norm", d), **linear("head", d, CLASSES)}


@dataclass(frozen=True)
class Family:
    """A key family: its pattern at a small and at a published size, and their specs.

    Args:
        prefix: before every name but those of the normalization.
        normalization: what a normalization saved beside the weights is called; none of them has one of its own.
        dead: beginning of names that the network never uses.
    """

    architecture: str
    small: Shapes
    small_settings: Mapping[str, Any]
    whole: Shapes
    whole_settings: Mapping[str, Any]
    prefix: str = ""
    normalization: tuple[str, ...] = ("mu", "sigma")
    dead: str = "-"
    shared: tuple[str, ...] = field(default=())


SILU = {"form": "deepmind", "activation": "silu"}
FAMILIES = {
    "RN-18": Family("resnet18", rn((2, 2, 2, 2), 4), {"width": 4}, rn((2, 2, 2, 2)), {}),
    "RN-50": Family(
        "resnet50",
        rn((3, 4, 6, 3), 4, bottleneck=True),
        {"width": 4},
        rn((3, 4, 6, 3), bottleneck=True),
        {},
        normalization=("normalizer.new_mean", "normalizer.new_std"),
    ),
    "PRN-a": Family(
        "preact_resnet18",
        prn((2, 2, 2, 2), 4, final=False),
        {"form": "a", "width": 4},
        prn((2, 2, 2, 2), final=False),
        {"form": "a"},
    ),
    "PRN-b": Family(
        "preact_resnet18", prn((2, 2, 2, 2), 4, final=True), {"width": 4}, prn((2, 2, 2, 2), final=True), {}
    ),
    "DM-PRN": Family(
        "preact_resnet18",
        dm_prn((2, 2, 2, 2), 4),
        {"form": "dm", "activation": "silu", "width": 4},
        dm_prn((2, 2, 2, 2)),
        {"form": "dm", "activation": "silu"},
        normalization=("mean", "std"),
    ),
    "WRN": Family(
        "wide_resnet", wide(WRN, 16, 1), {"depth": 16, "widen": 1}, wide(WRN, 34, 10), {"depth": 34, "widen": 10}
    ),
    "WRN with a dead stage": Family(
        "wide_resnet",
        with_dead_stage(wide(WRN, 16, 1)),
        {"depth": 16, "widen": 1},
        with_dead_stage(wide(WRN, 28, 10)),
        {"depth": 28, "widen": 10},
        dead="sub_block1.",
    ),
    "DM-WRN": Family(
        "wide_resnet",
        wide(DM_WRN, 16, 1),
        {"depth": 16, "widen": 1, **SILU},
        wide(DM_WRN, 94, 16),
        {"depth": 94, "widen": 16, **SILU},
        normalization=("mean", "std"),
    ),
    "PAF-WRN": Family(
        "wide_resnet",
        with_shared_activation(wide(WRN, 16, 1)),
        {"depth": 16, "widen": 1, "activation": "pssilu"},
        with_shared_activation(wide(WRN, 28, 10)),
        {"depth": 28, "widen": 10, "activation": "pssilu"},
        shared=("activation.alpha", "activation.beta"),
    ),
    "RWRN": Family(
        "robust_wide_resnet",
        RWRN.shapes([32, 64, 64], [1, 2, 1]),
        {"depths": [1, 2, 1], "widths": [2, 2, 1]},
        RWRN.shapes([320, 640, 512], [5, 5, 5]),
        {},
    ),
    "RRN": Family(
        "robust_resnet",
        RRN.shapes([32, 96, 64], [1, 2, 1]),
        {"block": "basic", "activation": "silu", "depths": [1, 2, 1], "widths": [2, 3, 1]},
        RRN.shapes([160, 448, 384], [27, 28, 13]),
        {"block": "basic", "activation": "silu", "depths": [27, 28, 13], "widths": [10, 14, 6]},
    ),
    "RA-WRN": Family(
        "robust_arch_wide_resnet",
        ra_wrn([1, 2, 1], [8, 16, 32], 4),
        {"depths": [1, 2, 1], "widths": [8, 16, 32], "stem": 4},
        ra_wrn([30, 31, 10], [216, 432, 864], 96),
        {},
        normalization=("mean", "std"),
    ),
    "RaWRN-101-2": Family(
        "robust_arch_wide_resnet101_2",
        ra_resnet([7, 11, 18, 1], [88, 168, 336, 672], 16, CLASSES),
        {"width": 16},
        ra_resnet([7, 11, 18, 1], [512, 1024, 2016, 4032], 96, CLASSES),
        {},
        normalization=("normalization.mean", "normalization.std"),
    ),
    "XCIT": Family(
        "xcit",
        xcit(16, 2, 2),
        {"width": 16, "heads": 2, "depth": 2},
        xcit(768, 16, 12),
        {"width": 768, "heads": 16},
        prefix="model.",
        normalization=("normalize.mean", "normalize.std"),
    ),
}
of_every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
# Parameters of the published networks for ten classes, including a stored but unused stage.
PUBLISHED = {
    "RN-18": 11_173_962,
    "RN-50": 23_520_842,
    "PRN-a": 11_171_146,
    "PRN-b": 11_172_170,
    "DM-PRN": 12_548_426,
    "WRN": 46_160_474,
    "WRN with a dead stage": 38_119_866,
    "DM-WRN": 365_915_610,
    "PAF-WRN": 36_479_196,
    "RWRN": 68_116_698,
    "RRN": 147_291_738,
    "RA-WRN": 267_240_802,
    # Of 1000 classes, those of 10.
    "RaWRN-101-2": 104_065_776 - 990 * (4032 + 1),
    "XCIT": 103_031_338,
}


def drawn(family: Family, seed: int = 0) -> dict[str, Tensor]:
    """All numbers differ, so that misplaced ones are found."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in family.small.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(len(state))
        else:
            value = torch.rand(shape, generator=generator)
            state[key] = value + 0.5 if key.endswith("running_var") else (value - 0.5) / 2
    for name in family.shared:
        for key in state:
            if key.endswith(f".{name}"):
                state[key] = state[name]
    return state


def written(text: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as on the command line."""
    return tuple(
        f"architecture.{key}={str(value).replace(' ', '') if isinstance(value, list) else value}"
        for key, value in text.items()
    )


def loaded(path: Path, family: Family, key: str | None = None) -> tuple[nn.Module, tuple[float, ...] | None]:
    """The network of `robust eval FILE --architecture NAME architecture.KEY=VALUE --data cifar10`."""
    overrides = (*written(family.small_settings),)
    wanted = ModelRequest(
        text=str(path), architecture=family.architecture, overrides=overrides, data="cifar10", weights_key=key
    )
    subject = find_model(wanted)
    assert isinstance(subject, ExternalModel)
    body = subject.source.load(SHAPE, torch.device("cpu"))
    return body.network, body.mean


def require_all_landed(network: nn.Module, state: Mapping[str, Tensor], family: Family) -> None:
    """Check that the network has exactly the tensors of the file."""
    found = network.state_dict()
    alive = {key: tensor for key, tensor in state.items() if not key.startswith(family.dead)}
    assert set(found) == set(alive)
    for key, tensor in alive.items():
        assert torch.equal(found[key], tensor), key


Wrap = Callable[[dict[str, Tensor]], Any]
WRAPS: dict[str, tuple[Wrap, str | None]] = {
    "bare": (lambda state: state, None),
    "module.": (lambda state: {f"module.{key}": value for key, value in state.items()}, None),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 100, "best": 0.5}, None),
    "module. in state_dict": (
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        None,
    ),
    "last": (lambda state: {"last": state, "best": {key: value + 1 for key, value in state.items()}}, "last"),
    "last alone": (lambda state: {"last": state}, None),
}


@pytest.mark.parametrize(("name", "wrap"), cover(list(FAMILIES), list(WRAPS), strength=1))
def test_every_tensor_lands(tmp_path: Path, name: str, wrap: str) -> None:
    """Prefixes around the weights, which are removed before names are matched."""
    family, (wrapped, key) = FAMILIES[name], WRAPS[wrap]
    state = drawn(family)
    torch.save(wrapped({f"{family.prefix}{name}": tensor for name, tensor in state.items()}), tmp_path / "w.pt")
    network, mean = loaded(tmp_path / "w.pt", family, key)
    require_all_landed(network, state, family)
    assert mean is None


@of_every_family
@pytest.mark.parametrize("outer", ["", "module."])
def test_every_tensor_is_loaded_with_a_normalization_in_the_file(tmp_path: Path, family: Family, outer: str) -> None:
    state = drawn(family)
    file = {f"{outer}{family.prefix}{name}": tensor for name, tensor in state.items()}
    values = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    for name, value in zip(family.normalization, values, strict=True):
        file[f"{outer}{name}"] = torch.tensor(value).view(1, 3, 1, 1)
    torch.save({"state_dict": file}, tmp_path / "w.pt")
    network, mean = loaded(tmp_path / "w.pt", family)
    require_all_landed(network, state, family)
    assert mean == pytest.approx(values[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_published_size_has_these_names_and_shapes(name: str) -> None:
    family = FAMILIES[name]
    builder = ARCHITECTURES.get(family.architecture)
    with torch.device("meta"):
        network: nn.Module = builder(SHAPE, **family.whole_settings)
    alive = {key: shape for key, shape in family.whole.items() if not key.startswith(family.dead)}
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == alive
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    repeated = tuple(f".{shared}" for shared in family.shared) or ("-",)
    learned = [shape for key, shape in family.whole.items() if not key.endswith((*statistics, *repeated))]
    assert sum(torch.Size(shape).numel() for shape in learned) == PUBLISHED[name]


@of_every_family
def test_one_missing_tensor_is_named(tmp_path: Path, family: Family) -> None:
    state = drawn(family)
    gone = [key for key in state if key.endswith(("running_mean", "weight")) and not key.startswith(family.dead)][-1]
    del state[gone]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RobustCliError, match=rf"1 missing: {gone}"):
        loaded(tmp_path / "w.pt", family)


@of_every_family
def test_its_architecture_is_recognized_by_these_names(family: Family) -> None:
    words = recognize(drawn(family))
    assert words is not None
    assert words.startswith(f"--architecture {family.architecture} ")


def test_copies_of_a_shared_weight_that_differ_are_refused(tmp_path: Path) -> None:
    family = FAMILIES["PAF-WRN"]
    state = drawn(family)
    state["block2.layer.0.activation.alpha"] = state["activation.alpha"] + 1
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RobustCliError, match=r"alpha are one weight there, and in the file they differ"):
        loaded(tmp_path / "w.pt", family)


@pytest.mark.parametrize(
    ("size", "width", "heads", "count"),
    [("s", 384, 8, 25_872_154), ("m", 512, 8, 45_893_290), ("l", 768, 16, 103_031_338)],
)
@pytest.mark.parametrize(
    "name", ["debenedetti2020light_xcit_{}_cifar10_linf", "debenedetti2022light_xcit_{}12_cifar10_linf"]
)
def test_names_of_published_xcits_mean_this_projects(
    tmp_path: Path, name: str, size: str, width: int, heads: int, count: int
) -> None:
    torch.save({"model.cls_token.weight": torch.zeros(1)}, tmp_path / "w.pt")
    wanted = ModelRequest(text=f"timm:{name.format(size)}", weights=str(tmp_path / "w.pt"), data="cifar10")
    subject = find_model(wanted)
    assert isinstance(subject, ExternalModel)
    chosen = subject.source.chosen  # type: ignore[attr-defined]
    assert chosen.name == "xcit"
    assert (chosen.parameters["width"], chosen.parameters["heads"], chosen.parameters["patch"]) == (width, heads, 4)
    with torch.device("meta"):
        network: nn.Module = ARCHITECTURES.get("xcit")(SHAPE, **chosen.parameters)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_a_published_xcit_is_loaded_by_its_name_in_timm(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(shape, generator=generator) for key, shape in xcit(384, 8, 12).items()}
    file = {**{f"model.{key}": tensor for key, tensor in state.items()}, "normalize.mean": torch.zeros(3)}
    torch.save({**file, "normalize.std": torch.ones(3)}, tmp_path / "w.pt")
    name = "timm:debenedetti2020light_xcit_s_cifar10_linf"
    subject = find_model(ModelRequest(text=name, weights=str(tmp_path / "w.pt"), data="cifar10"))
    assert isinstance(subject, ExternalModel)
    body = subject.source.load(SHAPE, torch.device("cpu"))
    found = body.network.state_dict()
    assert body.mean == (0, 0, 0)
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items() if "num_batches" not in key)


def test_an_xcit_for_imagenet_has_larger_patches_and_without_a_file_there_is_nothing_to_load(tmp_path: Path) -> None:
    torch.save({"model.cls_token.weight": torch.zeros(1)}, tmp_path / "w.pt")
    name = "timm:debenedetti2020light_xcit_m_imagenet_linf"
    subject = find_model(ModelRequest(text=name, weights=str(tmp_path / "w.pt"), data="cifar10"))
    assert isinstance(subject, ExternalModel)
    assert subject.source.chosen.parameters["patch"] == 16  # type: ignore[attr-defined]
    with pytest.raises(RobustCliError, match="timm does not have its weights; --weights names a file of them"):
        find_model(ModelRequest(text=name, data="cifar10"))
