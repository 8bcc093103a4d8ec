"""A folder of images, one subfolder for each class."""

from typing import Literal

from robustcli.data.datasets import DATASETS, Part, Source
from robustcli.data.datasets.encoded import source_of, test_source_of
from robustcli.data.datasets.folder_layout import both_parts, test_part
from robustcli.registry.types import Count, Size


@DATASETS.register(
    "image_folder",
    reads_test=True,
    own_images=True,
    given_by="/",
    added={"crop_from": "square", "draft": False},
    smoke={"root": "data/images"},
)
def image_folder(
    part: Part = "all",
    /,
    *,
    root: str,
    size: Count = 32,
    memory_mib: Size = 2048,
    crop_from: Literal["square", "whole"] = "square",
    draft: bool = False,
) -> Source:
    """Your own images: root/train/<class>/<image> and root/test/<class>/<image>, always read as RGB.

    If there is no "test", "val" is read instead. Classes are numbered in the order of their names. An image of another
    size is cropped to its central square and resized (bilinear, with smoothing when it shrinks). Test images come in
    one fixed random order, so that the first n of them are a fair sample. Mean and std are those of the train images,
    or of the first 1,000 in a fixed random order if images are not kept in memory. An evaluation reads only the test
    images that it needs, and the class names of the train part if there is one. TinyImageNet is read as published:
    images in train/<class>/images and val/images, with the classes in val/val_annotations.txt; its unlabeled test part
    is ignored. `robust pack` converts a folder into a few files that are read much faster.

    Args:
        root: the folder; "~" is the home folder.
        size: height and width of the images, in pixels.
        memory_mib: if all decoded images fit into this many MiB, they are kept in memory; otherwise each is decoded
            when needed, by one thread per usable processor.
        crop_from: source of data.augment.resized_crop: the central "square", cropped on the device, or the "whole"
            image, cropped while decoding, as is usual on ImageNet; then train images are decoded at every read.
        draft: decode JPEG at 1/2, 1/4 or 1/8 of its size if that is at least the required size: faster for large
            photos, with slightly different pixels.

    Reference: the layout of torchvision's ImageFolder, pytorch.org/vision.
    """
    if part == "test":
        return test_source_of(*test_part(root, size), draft=draft)
    train, test, classes = both_parts(root, size)
    return source_of(train, test, classes, memory_mib, crop_from, draft=draft)
