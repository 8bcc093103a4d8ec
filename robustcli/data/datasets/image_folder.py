"""A folder of images, one subfolder for each class."""

from typing import Literal

from robustcli.data.datasets import DATASETS, Source, reads_test
from robustcli.data.datasets.encoded import source_of, test_source_of
from robustcli.data.datasets.folder_layout import both_parts, test_part
from robustcli.registry.types import Count, Size


@DATASETS.register(
    "image_folder",
    own_images=True,
    added={"crop_from": "square", "draft": False},
    smoke={"root": "data/images"},
)
def image_folder(
    *,
    root: str,
    size: Count = 32,
    memory_mib: Size = 2048,
    crop_from: Literal["square", "whole"] = "square",
    draft: bool = False,
) -> Source:
    """Your own images: root/train/<class>/<image> and root/test/<class>/<image>, always read as RGB.

    If there is no "test", "val" is read instead. Classes are numbered in the order of their names. An image of another
    size is reduced to its central square, which is resampled (bilinear, smoothed when it shrinks). Since folders are
    sorted by class, test images come in one fixed random order, so that the first n of them are a fair sample. Mean and
    std are those of the train images; if images are not held in memory, those of the first 1,000 in a fixed random
    order. An evaluation reads only the test images that it needs. TinyImageNet is read as it is unpacked: images in
    train/<class>/images and val/images, whose classes val/val_annotations.txt lists; its unlabelled test part is not
    read. `robust pack` writes a folder into a few files that are read much faster.

    Args:
        root: the folder; "~" is the home folder.
        size: height and width that images get, in pixels.
        memory_mib: up to this much, in MiB, all images are decoded once into memory; beyond it each is read
            whenever it is needed, by as many threads as the process may use processors.
        crop_from: what data.augment.resized_crop is cut from: the central "square", on the device, or the "whole" image
            while it is decoded, as is usual on ImageNet; then train images are decoded whenever they are needed.
        draft: decode JPEG at 1/2, 1/4 or 1/8 of its size where that is no less than needed: faster for large photos,
            with slightly other pixels.

    Reference: the layout of torchvision's ImageFolder, pytorch.org/vision.
    """
    train, test, classes = both_parts(root, size)
    return source_of(train, test, classes, memory_mib, crop_from, draft=draft)


@reads_test("image_folder")
def image_folder_test(
    *,
    root: str,
    size: int = 32,
    memory_mib: int = 2048,
    crop_from: Literal["square", "whole"] = "square",
    draft: bool = False,
) -> Source:
    """The test part of a folder, each image decoded when it is needed.

    Of the train part, which may be absent, only the names of its classes are read: a class may lack test images.
    """
    return test_source_of(*test_part(root, size), draft=draft)
