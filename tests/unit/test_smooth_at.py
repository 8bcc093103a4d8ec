"""Additions of smooth adversarial training to PGD-AT, and unchanged digests of older specs."""

import pytest
import torch
from small_steps import COUNT, LINF, batch, counted, progress, same, train

from robustcli.attacks import Attack
from robustcli.attacks.none import NoAttack
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import IndexedNoise


def attack_at(defense: MinMax, at: Progress) -> Attack:
    return defense.curriculum.start(conv_net()).attack(defense.attack, at)


def starts_of(defense: MinMax, updates: int) -> list[str]:
    """Starts of the attacks of the first updates."""
    curriculum = defense.curriculum.start(conv_net())
    attacks = [curriculum.attack(defense.attack, progress(update)) for update in range(updates)]
    return [attack.start for attack in attacks if isinstance(attack, Pgd)]


def test_a_share_of_the_batches_begins_at_its_clean_images() -> None:
    for share in (0.2, 0.7):
        starts = starts_of(pgd_at(clean_batches=share), 2000)
        assert len(starts) == 2000
        assert set(starts) == {"clean", "random"}
        assert starts.count("clean") / 2000 == pytest.approx(share, abs=0.03)
    # A larger share has the batches of a smaller one, and which they are follows from the update alone.
    few, many = (
        {update for update, start in enumerate(starts_of(pgd_at(clean_batches=share), 200)) if start == "clean"}
        for share in (0.2, 0.7)
    )
    assert few < many
    assert attack_at(pgd_at(clean_batches=0.2), Progress(min(few), 7, 3)) == Pgd(start="clean")


def test_such_a_batch_is_attacked_as_from_a_clean_start() -> None:
    usual, mixed = pgd_at(steps=2), pgd_at(steps=2, clean_batches=0.9)
    assert "clean" in starts_of(mixed, 3)
    assert not same(train(usual, conv_net()), train(mixed, conv_net()))
    begun = starts_of(mixed, 100).index("clean")
    x, y = batch()
    noise = IndexedNoise(0, torch.arange(COUNT))
    found = attack_at(mixed, progress(begun))(conv_net().eval(), x, y, LINF, noise)
    assert torch.equal(found, Pgd(steps=2, start="clean")(conv_net().eval(), x, y, LINF, noise))


@pytest.mark.parametrize("attack", [NoAttack(), Pgd(start="clean")])
def test_an_attack_without_another_start_is_refused(attack: NoAttack | Pgd) -> None:
    defense = MinMax(attack=attack, loss=pgd_at().loss, curriculum=pgd_at(clean_batches=0.2).curriculum)
    with pytest.raises(RobustCliError, match=r"defense\.clean_batches: starts the attack at the clean images"):
        train(defense, conv_net(), updates=1)


@pytest.mark.parametrize(
    ("steps", "step_size", "length"),
    [(1, 1 / 255, 8 / 255), (2, 1 / 255, 4 / 255), (10, 1 / 255, 1 / 255), (2, None, 4 / 255), (8, None, 2 / 255)],
)
def test_steps_that_would_not_cover_the_radius_are_lengthened(
    steps: int, step_size: float | None, length: float
) -> None:
    model, (x, y) = conv_net().eval(), batch()
    noise = IndexedNoise(0, torch.arange(COUNT))
    reaching = Pgd(steps=steps, step_size=step_size, start="clean", reach_eps=True)
    assert torch.equal(
        reaching(model, x, y, LINF, noise),
        Pgd(steps=steps, step_size=length, start="clean")(model, x, y, LINF, noise),
    )
    with counted(model) as passes:
        pgd_at(steps=steps, reach_eps=True).attack(model, x, y, LINF, noise)
    assert passes.forwards == steps


def test_no_steps_cover_nothing() -> None:
    model, (x, y) = conv_net().eval(), batch()
    found = Pgd(steps=0, start="clean", reach_eps=True)(model, x, y, LINF, IndexedNoise(0, torch.arange(COUNT)))
    assert torch.equal(found, x)


def test_the_shipped_recipe_takes_one_step_of_the_whole_radius() -> None:
    spec = ExperimentSpec.read(experiments.find("image_folder/sat"))
    assert (spec.defense.parameters["steps"], spec.defense.parameters["reach_eps"]) == (1, True)
    assert spec.defense.parameters["clean_batches"] == 0.2
    assert spec.train.lr == pytest.approx(0.1 * spec.train.batch_size / 256)


def test_a_spec_without_later_parameters_keeps_its_digest() -> None:
    """Recorded before multistep had a warm-up, pgd a reach and pgd_at clean batches."""
    recorded = {"mnist/pgd_at": "b7e35685", "cifar10/pgd_at_pang": "c9afe9db"}
    for name, digest in recorded.items():
        path = experiments.find(name)
        assert ExperimentSpec.read(path).digest == digest
        written = ["defense.reach_eps=false", "defense.clean_batches=0", "train.schedule.warmup=0"]
        have = [item for item in written if "warmup" not in item or name != "mnist/pgd_at"]
        assert ExperimentSpec.read(path, have).digest == digest
        assert ExperimentSpec.read(path, ["defense.reach_eps=true"]).digest != digest
        assert ExperimentSpec.read(path, ["defense.clean_batches=0.1"]).digest != digest
    pang = experiments.find("cifar10/pgd_at_pang")
    assert ExperimentSpec.read(pang, ["train.schedule.warmup=1"]).digest != recorded["cifar10/pgd_at_pang"]
