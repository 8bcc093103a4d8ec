"""Certificates of an evaluation: made in parts that the journal keeps, and compared with what the attacks broke."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustcli.data.images import AnyImages
from robustcli.evaluation.confirm import votes_for
from robustcli.evaluation.evidence import Evidence, as_text
from robustcli.evaluation.journal import Journal
from robustcli.evaluation.progress import Report, StageProgress
from robustcli.evaluators import Certificate, Certifier, Evaluator, chunks
from robustcli.statistics import clopper_pearson, most_by_chance
from robustcli.store.evaluations import CertifiedRecord
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# Votes, as a multiple of the usual number, that decide whether a smoothed network loses a certified image, and the
# confidence with which they do.
_SURER, _SURELY = 5, 0.998


def certified(
    certifier: Certifier,
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    batch_size: int,
    journal: Journal,
    report: Report,
) -> Certificate:
    """The certificates of all images."""
    found: list[Certificate] = []
    for part in chunks(len(x), batch_size):
        report(StageProgress("certificates", entered=len(x), attacked=part.start))
        rows = torch.arange(part.start, part.stop, device=x.device)
        own = rng.rows(rows)
        one = journal.certificate(own.index)
        if one is None:
            one = certifier.certify(model, x[rows], y[rows], threat, own)
            journal.keep_certificate(own.index, one)
        found.append(one)
    counts = [one.abstained for one in found if one.abstained is not None]
    return Certificate(
        torch.cat([one.is_certified.cpu() for one in found]), sum(counts) if counts else None, found[0].chance
    )


def contradictions(
    certificate: Certificate,
    evaluator: Evaluator,
    network: nn.Module,
    x: AnyImages,
    y: Tensor,
    evidence: Evidence,
    seed: int,
) -> Iterator[str]:
    """Yield a suspicion if an attack broke more certified images than chance explains.

    Args:
        network: the network that certificate and attacks are about.
    """
    odd = (certificate.is_certified & ~evidence.survives).nonzero().flatten()
    if is_smoothed(evaluator):
        odd = odd[_surely_lost(network, x, y, evidence, odd, _SURER * votes_for(evaluator, network), seed)]
    if len(odd) > most_by_chance(len(certificate.is_certified), certificate.chance):
        yield (
            f"{len(odd)} images are certified, and an attack broke them: certificate or attack is wrong, and neither "
            "bound can be trusted; please report it"
        )


def is_smoothed(evaluator: Evaluator) -> bool:
    """Return whether an evaluator is about a network smoothed by noise."""
    return evaluator.certifier is not None and evaluator.certifier.smooths


def certified_record(certificate: Certificate, evaluator: Evaluator) -> CertifiedRecord:
    """The certificate as it is stored."""
    return CertifiedRecord(
        images=as_text(certificate.is_certified),
        abstained=certificate.abstained,
        is_smoothed=is_smoothed(evaluator),
        chance=certificate.chance,
    )


def _surely_lost(
    network: nn.Module, x: AnyImages, y: Tensor, evidence: Evidence, rows: Tensor, votes: int, seed: int
) -> Tensor:
    """Mask of broken images, given by their rows, whose label surely has less than half of the votes.

    The certificate is about the class with most of all votes. At the worst point of the threat set this class may have
    just over a half, and then a vote of few copies often goes wrong.
    """
    torch.manual_seed(derive(seed, "certificates"))
    lost = []
    for row in rows.to(x.device)[:, None]:
        # An image that was lost when clean has no example.
        example = evidence.points.get(int(evidence.numbers[row.cpu()]))
        point = x[row] if example is None else example.to(x.device)[None]
        with torch.no_grad():
            right = sum(int(network(point).argmax(1) == y[row]) for _ in range(votes))
        lost.append(clopper_pearson(right, votes, _SURELY)[1] < 0.5)
    return torch.tensor(lost, dtype=torch.bool)
