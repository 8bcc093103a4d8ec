"""Metadata of a model card that a run does not contain: a file written by the user."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from robustcli.errors import RobustCliError, SpecError
from robustcli.registry.catalog import catalog
from robustcli.specs.check import checked, settings_of
from robustcli.specs.yamlfile import read_yaml

EXAMPLE = """\
link: https://arxiv.org/abs/2601.00001        # of the paper
name: "Title of the paper"
authors: "First Author, Second Author"
venue: "arXiv, Jan 2026"
additional_data: false                        # real images besides the training set; generated ones go to footnote
reported: "53.42"                             # robust accuracy in the paper, in percent; "" if none
footnote: null                                # optional
external: null                                # optional: a lower accuracy that others found, in percent: "52.10"
model_id: null                                # optional: name of the card, such as Author2026Title_WRN-34-10
dataset: null                                 # only for an .npz file or a folder of images: what they are
"""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata that a run does not contain.

    Args:
        link: address of the paper.
        name: title of the paper.
        authors: separated by commas.
        venue: venue of the paper, with the year.
        additional_data: whether training used real images besides the training set.
        reported: robust accuracy stated in the paper, in percent, or "".
        footnote: footnote of the card.
        external: a lower robust accuracy found by others, in percent.
        model_id: name of the card. Default: made of author, year and title.
        dataset: name of the data set, for images from your own files.
    """

    link: str
    name: str
    authors: str
    venue: str
    additional_data: bool
    reported: str
    footnote: str | None = None
    external: str | None = None
    model_id: str | None = None
    dataset: str | None = None

    @property
    def card_name(self) -> str:
        """Name, year and first word, as in Rice2020Overfitting."""
        if self.model_id is not None:
            return self.model_id
        year = re.findall(r"(?:19|20)\d\d", self.venue)[-1]
        return f"{_plain_words(self.authors.split(',')[0])[-1]}{year}{_plain_words(self.name)[0]}"


def read_metadata(path: Path | None) -> Metadata:
    """Read the file of --metadata.

    Raises:
        RobustCliError: there is no file, or keys are missing, unknown or have invalid values; with all problems and an
            example.
    """
    if path is None:
        wanted = ", ".join(item.name for item in fields(Metadata)[:6])
        raise RobustCliError(f"--metadata: missing {wanted}; write them into a file such as\n\n{EXAMPLE}")
    values = read_yaml(path).value
    if not isinstance(values, dict):
        raise RobustCliError(f"{path}: expected keys and values, such as\n\n{EXAMPLE}")
    try:
        words = "the metadata"
        resolved = checked(lambda checker: checker.parameters(settings_of(Metadata), values, (), words), str(path))
        found = Metadata(**resolved)
        if problems := list(_problems(found)):
            raise SpecError(str(path), problems)
    except SpecError as error:
        raise RobustCliError(f"{error}\n\nan example of such a file:\n\n{EXAMPLE}") from error
    return found


def _problems(found: Metadata) -> Iterator[str]:
    for key in ("link", "name", "authors", "venue"):
        if not getattr(found, key).strip():
            yield f"{key}: is empty"
    for key in ("reported", "external"):
        text = getattr(found, key)
        if text not in ("", None) and not _is_percentage(text):
            yield f"{key}: '{text}' is not a percentage such as \"53.42\""
    if found.external == "":
        yield "external: is empty; remove it"
    if found.model_id is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", found.model_id):
            yield f"model_id: '{found.model_id}' is not the name of a file such as Author2026Title_WRN-34-10"
        return
    if not re.search(r"(?:19|20)\d\d", found.venue):
        yield f"venue: '{found.venue}' has no year to name the card with; add it, or a model_id"
    for key, text in (("authors", found.authors.split(",")[0]), ("name", found.name)):
        if text.strip() and not _plain_words(text):
            yield f"{key}: '{text}' has no Latin letters to name the card with; add a model_id"


def _is_percentage(text: str) -> bool:
    return bool(re.fullmatch(r"\d{1,3}(?:\.\d+)?", text)) and Fraction(text) <= 100


def _plain_words(text: str) -> list[str]:
    """Return the words of a text, without accents."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z0-9]+", letters)


def dataset_of(source: str, metadata: Metadata) -> str:
    """Return the name of the data set in a card.

    Args:
        source: registered name of the reader.

    Raises:
        RobustCliError: the name is missing, or user and run contradict each other.
    """
    said = metadata.dataset
    member = catalog("datasets").get(source)
    if member is None or not member.own_images:
        if said not in (None, source):
            raise RobustCliError(f"metadata: dataset: '{said}': the evaluation is on {source}; remove the key")
        return source
    if not said:
        raise RobustCliError(f"metadata: dataset: is missing; {source} does not name the data set")
    if said in catalog("datasets"):
        raise RobustCliError(
            f"metadata: dataset: the images come from {source}, which may differ from the published {said}; evaluate "
            f"with --data {said}, or give these images another name"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", said):
        raise RobustCliError(f"metadata: dataset: '{said}' is not the name of a folder such as imagenet")
    return said
