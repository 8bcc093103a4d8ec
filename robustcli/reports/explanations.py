"""Explanations of verdicts, suspicions, states of runs and exit codes, with advice."""

from dataclasses import dataclass

from robustcli.errors import RobustCliError, suggest


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Explanation of one code.

    Args:
        code: argument of `robust explain`.
        means: meaning of the code.
        then: advice.
        phrases: parts of messages that it explains.
        former: parts of messages in results of earlier versions.
    """

    code: str
    means: str
    then: str
    phrases: tuple[str, ...] = ()
    former: tuple[str, ...] = ()


EXPLANATIONS = (
    Explanation(
        code="TRUSTED",
        means="The checks before and after the attacks found nothing that speaks against the number.",
        then="Quote it together with its attack, threat model, number of images and interval. It stays an upper bound: "
        "a stronger attack may break more images.",
    ),
    Explanation(
        code="SUSPECT",
        means="At least one check found a sign that attacks failed for another reason than robustness, or that the "
        "network or its images are not what they should be.",
        then="Read the suspicions next to the number, and do not quote it without them. `robust explain` takes their "
        "text too.",
    ),
    Explanation(
        code="INVALID",
        means="An evaluation was refused, because its number would be meaningless: train mode, logits that are not "
        "finite or depend on the batch, pixels outside [0, 1], points outside the threat set.",
        then="Fix what the message names. INVALID numbers are never stored.",
        phrases=("INVALID: ",),
    ),
    Explanation(
        code="upper-bound",
        means="Only attacks of one kind were tried: all with gradients, or all without. Attacks of the other kind may "
        "break images that survived.",
        then="Evaluate with `--attack autoattack`, which has both kinds.",
    ),
    Explanation(
        code="gradient-masking",
        means="Attacks fail because the gradients of the network are useless (zero, noisy or misleading), while "
        "adversarial images exist. Quantization, saturated softmax, non-differentiable layers and some defenses do it.",
        then="Trust attacks without gradients more (`--attack square`), attack from another network (`--attack pgd "
        "--source CHECKPOINT`), and write an attack that fits the defense. See Athalye et al., ICML 2018.",
        phrases=(
            "gradients may be masked",
            "gradients do not help",
            "attacks by gradients cannot move",
            "its gradients may vanish",
        ),
        former=("gradients lead nowhere",),
    ),
    Explanation(
        code="no-gradient",
        means="No gradient flows from the logits to the images, so attacks by gradients cannot run.",
        then="Remove no_grad, detach and argmax from the forward pass, evaluate the network before it was quantized, "
        "or use `--attack square`.",
        phrases=("gives no gradient",),
    ),
    Explanation(
        code="chance",
        means="Clean accuracy cannot be distinguished from guessing, so robustness cannot be measured.",
        then="Most often the normalization (--mean, --std), the pixel range or the order of the labels is wrong, or "
        "the weights belong to another network.",
        phrases=("no better than guessing",),
    ),
    Explanation(
        code="random-points",
        means="Random points of the threat set fool the network on images that survived every attack. An attack "
        "that finds less than random search does not work on this network.",
        then="Check the settings of the attack, and treat the number as gradient-masking.",
        phrases=("random search found what the attacks missed",),
        former=("the attacks missed what chance finds",),
    ),
    Explanation(
        code="weak-attack",
        means="A longer run of the same attack breaks images that survived, or the attack made no search at all.",
        then="Use more steps, `--attack autoattack`, or an attack with restarts.",
        phrases=("images that survived it with", "no attack made a search pass"),
        former=("images that survived PGD", "images that withstood", "give it steps to make"),
    ),
    Explanation(
        code="randomness",
        means="The network draws noise in its forward pass, so its logits vary from call to call.",
        then="Use `--attack autoattack --version rand` or `--attack eot_pgd`, and report how predictions are made.",
        phrases=("logits vary from call to call", "one attack on a randomised model"),
    ),
    Explanation(
        code="clean-gap",
        means="Clean accuracy is far below what it was on held-out images in training.",
        then="Check that the images, their decoding and the checkpoint are those of the training.",
        phrases=("other images, another pixel range or other weights",),
        former=("other images, other pixels or other weights",),
    ),
    Explanation(
        code="dark-images",
        means="All pixels are nearly black, as when floats in [0, 1] were saved as bytes.",
        then="Save bytes from 0 to 255, or floats in [0, 1].",
        phrases=("nearly black",),
    ),
    Explanation(
        code="test-selection",
        means="The weights were selected on the images that they are evaluated on, which makes the number too good.",
        then="Select on validation images: data.val_size above 0 and no train.allow_test_selection.",
        phrases=("selected on test images",),
    ),
    Explanation(
        code="normalization",
        means="Networks are trained on normalized images. With another normalization clean accuracy falls, and so does "
        "every number that builds on it.",
        then="Pass --mean and --std (`--mean 0 --std 1` for none), as the source of the weights states them.",
        phrases=("nothing says which normalisation", "clearly best"),
    ),
    Explanation(
        code="collapsed",
        means="Training lost its robustness to attacks of many steps suddenly (catastrophic overfitting), as "
        "single-step training does at large eps.",
        then="Use a defense made against it (grad_align, n_fgsm), more steps or a smaller eps; train.on_collapse: "
        "rewind keeps the last good weights.",
        phrases=("catastrophic overfitting",),
    ),
    Explanation(
        code="rewound",
        means="Training collapsed, went back to its last good weights and ended there (train.on_collapse: rewind).",
        then="The results belong to the epoch before the collapse.",
    ),
    Explanation(
        code="failed",
        means="The training loss was not a finite number any more.",
        then="Lower train.lr, set train.grad_clip, or use train.precision: fp32.",
    ),
    Explanation(
        code="unfinished",
        means="The run was interrupted or is still running.",
        then="`robust train SPEC --resume` continues it.",
    ),
    Explanation(
        code="damaged",
        means="A file of the run cannot be read; the message names it.",
        then="Restore the file, or delete the folder of the run and train again.",
    ),
    Explanation(code="0", means="Exit code: done.", then="Nothing."),
    Explanation(
        code="1",
        means="Exit code: a check failed: verify, gate, doctor, check-member, reproduce of a finding.",
        then="Standard error says which.",
    ),
    Explanation(
        code="2",
        means="Exit code: bad input.",
        then="Standard error says where, what was found and what was expected.",
    ),
    Explanation(
        code="3",
        means="Exit code: interrupted by a signal; everything done so far is kept.",
        then="Run the same command again; `robust train` needs --resume.",
    ),
    Explanation(
        code="4",
        means="Exit code: training failed: it collapsed under train.on_collapse: stop, or its loss was not finite.",
        then="See `robust explain collapsed` and `robust explain failed`.",
    ),
    Explanation(
        code="70", means="Exit code: internal error.", then="Please report it with the traceback on standard error."
    ),
)


def explanations_of(text: str) -> list[Explanation]:
    """Return the explanation of a code, or those of the messages that a text quotes.

    Raises:
        RobustCliError: there is none.
    """
    wanted = text.strip().lower().replace("_", "-").replace(" ", "-")
    found = [one for one in EXPLANATIONS if one.code.lower() == wanted]
    if not found:
        found = [
            one for one in EXPLANATIONS if any(phrase.lower() in text.lower() for phrase in (*one.phrases, *one.former))
        ]
    if not found:
        raise RobustCliError(f"there is no explanation of '{text}'{suggest(text, (one.code for one in EXPLANATIONS))}")
    return found
