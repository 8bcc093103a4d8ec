"""The part of a model card that no run knows: a file that the user writes."""

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
    """What no run knows.

    Args:
        link: to the paper.
        name: its title.
        authors: separated by commas.
        venue: where it appeared, with the year.
        additional_data: whether real images besides the training set were trained on.
        reported: robust accuracy that the paper states, in percent, or "".
        footnote: to the card.
        external: a lower robust accuracy by an attack of others, in percent.
        model_id: name of the card; made of author, year and title if left out.
        dataset: what images of a user's own are.
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
    """The file of --metadata.

    Raises:
        RobustCliError: there is none, or keys are missing, unknown or no such values; with all problems and an
            example.
    """
    if path is None:
        wanted = ", ".join(item.name for item in fields(Metadata)[:6])
        raise RobustCliError(f"--metadata: nothing says {wanted}; write them into a file such as\n\n{EXAMPLE}")
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
        yield "external: is empty; leave it out"
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
    """The words of a text, without accents."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z0-9]+", letters)


def dataset_of(source: str, metadata: Metadata) -> str:
    """What a card calls the images.

    Args:
        source: registered name of what they were read by.

    Raises:
        RobustCliError: it is missing, or the user and the run contradict each other.
    """
    said = metadata.dataset
    member = catalog("datasets").get(source)
    if member is None or not member.own_images:
        if said not in (None, source):
            raise RobustCliError(f"metadata: dataset: '{said}': the evaluation is on {source}; leave the key out")
        return source
    if not said:
        raise RobustCliError(f"metadata: dataset: the images come from {source}, which does not say what they are")
    if said in catalog("datasets"):
        raise RobustCliError(
            f"metadata: dataset: the images come from {source}, which may differ from the published {said}; evaluate "
            f"with --data {said}, or give these images another name"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", said):
        raise RobustCliError(f"metadata: dataset: '{said}' is not the name of a folder such as imagenet")
    return said
