"""Early signs of catastrophic overfitting: how well one gradient step predicts the loss in the ball."""

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
    """Means over images that fall when single-step training overfits catastrophically; no accuracies.

    alignment: cosine of the gradients at x and at x + eta, with eta uniform in the ball, not clipped to [0, 1]; falls
    from near 1 to near 0. fgsm_pgd_cosine: cosine of the perturbations of FGSM and of PGD. pgd_distortion: Euclidean
    length of PGD's perturbation divided by the largest in the ball. fw2_distortion: the same for Frank-Wolfe with two
    steps, not clipped; in linf, 0.745 means that the signs of the two gradients are independent. As in the released
    code, a cosine with a zero vector counts as 1; `zero_gradients` is the share of images with such a gradient.

    Args:
        model: evaluated in eval mode and left unchanged.
        y: labels (n,).
        steps: steps of PGD. The total cost is this many forwards and backwards and `BESIDE_PGD` more.
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
