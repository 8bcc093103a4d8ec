"""ImageNet-C in its published layout, and other folders of that layout."""

from robustcli.data.datasets import DATASETS, Source
from robustcli.data.datasets.corruptions import check_corruptions
from robustcli.data.datasets.encoded import test_source_of
from robustcli.data.datasets.folder_layout import several_parts
from robustcli.registry.types import Count


@DATASETS.register("imagenet_c", own_images=True, smoke={"root": "data/ImageNet-C"})
def imagenet_c(
    *, root: str, kinds: tuple[str, ...] = (), severities: tuple[Count, ...] = (), size: Count = 224
) -> Source:
    """ImageNet-C: images under corruptions, KIND/SEVERITY/CLASS/IMAGE below the folder; for evaluation only.

    Images of several kinds and severities come in one fixed random order, so that the first n of them are a fair
    sample. Classes are numbered in the order of their names, and all folders must have the same classes. An image of
    another size is cropped to its central square and resized.

    Args:
        root: the folder; "~" is the home folder.
        kinds: corruptions, such as fog or gaussian_noise; empty: the 15 of the benchmark.
        severities: from 1 (mild) to 5; empty: all.
        size: height and width of the images, in pixels.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019; the files: doi 10.5281/zenodo.2235448.
    """
    chosen, strengths = check_corruptions(kinds, severities)
    folders = [f"{kind}/{severity}" for kind in chosen for severity in strengths]
    return test_source_of(*several_parts(root, folders, size), draft=False)
