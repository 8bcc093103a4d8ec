"""What announces catastrophic overfitting: how much one gradient step says of the ball, and how much it misses."""

import torch
from torch import Tensor, nn

from robustcli.attacks.crafting import crafting
from robustcli.attacks.frank_wolfe import FrankWolfe
from robustcli.attacks.pgd import Pgd
from robustcli.diagnostics.measuring import attacked, cosines, gradients_of, in_batches
from robustcli.runtime.precision import full_precision
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# Forwards and backwards besides those of PGD: at the image, near it, and two of Frank-Wolfe.
BESIDE_PGD = 4


def monitors(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    *,
    steps: int,
    batch_size: int,
) -> dict[str, float]:
    """Means over images that fall when training with one step overfits catastrophically; no accuracies.

    alignment: cosine of the gradients at x and at x + eta, with eta uniform in the ball and not cut at the box; from
    near 1 to near 0. fgsm_pgd_cosine: of the perturbations of FGSM and of PGD. pgd_distortion: Euclidean length of
    PGD's perturbation over the greatest in the ball. fw2_distortion: likewise of Frank-Wolfe's with two steps, not cut
    at the box; in linf 0.745 where the signs of both say nothing of each other. As in the released code of the
    reference, a cosine with a zero vector counts as 1, so that `zero_gradients`, the share of images of which one of
    the two gradients is zero, belongs to them.

    Args:
        model: looked at in eval mode with its weights held; afterwards what it was.
        y: labels (n,).
        steps: of PGD. Altogether that is as many forwards and backwards, and `BESIDE_PGD` more.
        batch_size: images per gradient; changes only memory and speed.

    Reference: Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS 2020;
        distortion: Tsiligkaridis and Roberts, CVPR 2022.
    """
    rows = torch.arange(len(x), device=x.device)
    two_steps = FrankWolfe(steps=2)
    with full_precision(x.device.type), crafting(model, "eval"):
        at_image = gradients_of(model, x, y, batch_size)
        at_side = gradients_of(model, x + threat.noise(x, rng.split("beside")), y, batch_size)
        by_many = attacked(Pgd(steps=steps), model, x, y, threat, rng.split("pgd"), batch_size) - x
        by_two = in_batches(
            len(x),
            batch_size,
            lambda part: two_steps.perturbation(model, x[part], y[part], threat, rng.rows(rows[part])),
        )
    by_one = threat.project(x + threat.ascent(at_image, x, threat.radius), x) - x
    aligned = cosines(at_image, at_side)
    return {
        "alignment": _mean(aligned),
        "zero_gradients": float((~torch.isfinite(aligned)).double().mean()),
        "fgsm_pgd_cosine": _mean(cosines(by_one, by_many)),
        "pgd_distortion": float(threat.distortion(by_many).double().mean()),
        "fw2_distortion": float(threat.distortion(by_two).double().mean()),
    }


def _mean(found: Tensor) -> float:
    return float(torch.where(torch.isfinite(found), found, 1).mean())
