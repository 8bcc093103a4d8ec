"""The parts of a spec that are not members of a registry. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from robustcli.registry.types import Count, Family, NonNegative, Norm, Positive, ProperShare, Radius, Share, Size


@dataclass(frozen=True, kw_only=True)
class ThreatSettings:
    """The threat model of training and evaluation.

    Args:
        norm: linf, l2 or l1.
        eps: radius as a number or a quotient such as 8/255; pixels of [0, 1] for linf, length for l2.
    """

    norm: Norm = "linf"
    eps: Radius


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images, drawn anew for every image.

    Args:
        crop: pixels of padding before a random crop of the old size; 0 is no crop.
        pad_mode: contents of the padding: a mirror image ("reflect") or zeros.
        flip: whether half of the images are mirrored left to right.
        cutout: side of a square that is set to 0, in pixels; 0 is off.
        resized_crop: smallest share of the area of a random crop, which is resized to the whole image, with a ratio of
            the sides between 3:4 and 4:3; 0.08 on ImageNet, 0 is off.
        rotate: largest angle of rotation in degrees; 0 is off.
        jitter: largest relative change of brightness, contrast and saturation, in this order; 0 is off.
    """

    crop: Size = 0
    pad_mode: Literal["reflect", "zero"] = "reflect"
    flip: bool = False
    cutout: Size = 0
    resized_crop: ProperShare = 0.0
    rotate: NonNegative = 0.0
    jitter: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class ExtraSettings:
    """Additional training images, such as generated ones.

    Args:
        path: NumPy archive with "image", uint8 (n, height, width, channels), and "label", (n,), where -1 means none:
            such images only contribute a divergence from the clean prediction (defense: trades).
        labels: file with labels that replace those of the archive, such as a classifier's; .npz with "label"
            or .npy.
        share: share of every batch that is drawn from them, rounded down to whole images.
        label_smoothing: smoothing s of their labels.
    """

    path: str
    labels: str | None = None
    share: ProperShare = 0.7
    label_smoothing: ProperShare = 0.0


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of any data set.

    Args:
        val_size: number of training images used to select weights instead, chosen by a fixed permutation.
        train_size: number of the other training images that are used; null is all.
        augment: random changes of training images.
        mixer: mixing of the images of a training batch, after augmentation.
        label_smoothing: smoothing s of the labels in training; the extra images have their own.
        smoothing_over: classes that share s: all k classes including the label ("all"), or the k - 1 "others".
        smoothing_for: users of smoothed labels: only the "loss", as published, or "both" loss and attack. With "loss",
            the attack maximizes the loss of unsmoothed (possibly mixed) labels.
        extra: additional training images; null is none.
        workers: batches that are read ahead, also beyond the end of an epoch, if images are not in memory.
    """

    val_size: Size = 0
    train_size: Count | None = None
    augment: Augment = Augment()
    mixer: Annotated[Any, Family("mixers")] = "none"
    label_smoothing: ProperShare = 0.0
    smoothing_over: Literal["all", "others"] = "all"
    smoothing_for: Literal["loss", "both"] = "loss"
    extra: ExtraSettings | None = None
    workers: Size = 2

    @property
    def is_smoothed(self) -> bool:
        """True if any label is smoothed."""
        return bool(self.label_smoothing or (self.extra and self.extra.label_smoothing))


@dataclass(frozen=True, kw_only=True)
class ArchitectureOptions:
    """Options of any architecture.

    Args:
        normalize: first layer of the network: mean and std of the data set, none (pixels in [0, 1]), or "per_image"
            (each image by its own mean and std, over all channels).
        preprocess: transformation of the images before that layer, such as jpeg; part of the network in training,
            evaluation and attacks.
    """

    normalize: Literal["dataset", "none", "per_image"] = "dataset"
    preprocess: Annotated[Any, Family("preprocessors")] = "none"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of any evaluation.

    Args:
        examples: number of test images, from the first on in the data set's fixed order; null is all.
        save_examples: whether the adversarial images are kept, for `robust verify`.
    """

    examples: Count | None = None
    save_examples: bool = False

    # Former names of options.
    renamed: ClassVar[Mapping[str, str]] = {"witnesses": "save_examples"}


# Families whose members have options in a spec.
DATASET = Family("datasets", DataOptions)
ARCHITECTURE = Family("architectures", ArchitectureOptions)
EVALUATOR = Family("evaluators", EvaluateOptions)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the weights are trained.

    Args:
        epochs: passes over the training images; a defense that replays batches makes all its updates on a batch in
            one pass, so m replays cost as much as m times the epochs.
        batch_size: images per update.
        lr: learning rate at factor 1 of the schedule.
        optimizer: optimizer of the weights.
        schedule: factor of the learning rate over the run.
        weight_decay: weight decay of the optimizer, on all parameters except excluded ones.
        weight_decay_exclude: parameters without weight decay: none, those of normalization layers ("bn"), also all
            biases ("bn_and_bias"), or also all other vectors (layer scales, class tokens) and learned positions
            ("vectors"), as is usual with transformers.
        grad_clip: maximum norm of the whole gradient; null is no limit.
        eps_warmup: epochs over which eps rises from 0.
        eps_warmup_form: "line": linear, at every update; "stairs": linear, at the start of each epoch; "sine": half a
            cosine, at the start of each epoch.
        drop_last: whether an incomplete last batch is dropped.
        precision: of the network's passes in training: "fp32", "bf16", or "fp16" with gradients that are scaled
            inside; weights, losses and evaluation are always fp32. On GPUs "fp32" lets convolutions use TF32 as torch
            does by default; each session records it. "auto" is bf16 on a GPU with instructions for it, unless the
            method needs fp32, and fp32 on a CPU; a run keeps the precision in which it began.
        channels_last: memory format of images and convolutions; changes speed and rounding only. "auto" is true for
            networks with batch norms, on x86 CPUs with AVX2 and, in 16 bits, on GPUs; each session records it.
        sync_batch_norm: whether batch norms normalize by the whole batch where several processes take slices of it, as
            in one process. Otherwise each normalizes by its slice, and running statistics are means over the processes.
        compile: whether the passes of whole batches are compiled, which takes a minute or two; changes speed and
            rounding only. "auto" is true on a GPU for runs of at least 10,000 updates; each session records it.
        select: rule for the "best" weights: highest "robust" or "clean" accuracy on validation images, or "last".
        allow_test_selection: select on test images if there are no validation images; noted with every number.
        check_examples: number of validation images in the check after every epoch.
        check_steps: PGD steps of that check.
        start_from: initial weights instead of random ones: a checkpoint or the folder of a run, a file of weights, or
            a name such as timm:resnet50, robustbench:NAME or hf:ORG/REPO. The architecture must be the same; a
            classifier for another number of classes stays random.
        on_collapse: action when robustness to many steps is lost suddenly: "stop", "rewind" to the last good weights
            and end there, or "continue".
        log: live logs of epochs in addition to train.jsonl: csv, tensorboard, wandb, trackio.
        device: auto (the first GPU if there is one), cpu, cuda or cuda:i.
    """

    epochs: Size
    batch_size: Count = 128
    lr: Positive = 0.1
    optimizer: Annotated[Any, Family("optimizers")] = "sgd"
    schedule: Annotated[Any, Family("schedules")] = "constant"
    weight_decay: NonNegative = 5e-4
    weight_decay_exclude: Literal["none", "bn", "bn_and_bias", "vectors"] = "none"
    grad_clip: Positive | None = None
    eps_warmup: NonNegative = 0.0
    eps_warmup_form: Literal["line", "stairs", "sine"] = "line"
    drop_last: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    sync_batch_norm: bool = False
    compile: bool | Literal["auto"] = "auto"
    select: Literal["robust", "clean", "last"] = "last"
    allow_test_selection: bool = False
    check_examples: Count = 256
    check_steps: Count = 10
    start_from: str | None = None
    on_collapse: Literal["stop", "rewind", "continue"] = "stop"
    log: tuple[Literal["csv", "tensorboard", "wandb", "trackio"], ...] = ()
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published result that the spec tries to reproduce.

    Args:
        source: paper or code with the result.
        table: place in the source.
        metrics: accuracies as fractions, by the names under `evaluate`.
        tolerance: difference beyond the interval that still counts as reproduced.
        selection: how the source selected its weights (last epoch, best on test, ...).
        hardware: hardware of the source.
        note: facts that a reader of the comparison must know.
    """

    source: str
    metrics: Mapping[str, Share] = field(default_factory=dict)
    table: str = ""
    tolerance: Share = 0.01
    selection: str = ""
    hardware: str = ""
    note: str = ""
