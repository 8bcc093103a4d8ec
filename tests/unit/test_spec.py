"""Specs: every problem at once with its place, overrides, guards, the digest, and the way back from YAML."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from robustcli.errors import RobustCliError, SpecError
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.registry.signatures import REQUIRED, Parameter
from robustcli.registry.types import Family
from robustcli.specs.check import family_of, settings_of
from robustcli.specs.places import GUARDS, Guard
from robustcli.specs.spec import ExperimentSpec, override_text
from robustcli.specs.yamlfile import Document, to_yaml

BASE = """\
name: base
data: {name: digits, val_size: 50}
architecture: small_cnn
threat: {norm: linf, eps: 8/255}
defense: {name: trades, beta: 6}
train:
  epochs: 10
  lr: 1e-4
  schedule: piecewise
evaluate:
  clean: clean
"""

WHOLE = """
name: whole
data: {name: cifar10, root: images}
architecture: {name: wide_resnet, depth: 10, form: trades}
threat: {norm: linf, eps: 8/255}
defense: {name: trades, beta: 6, steps: 10, step_size: 2/255}
train:
  epochs: 10
  optimizer: {name: sgd, momentum: 0.9}
evaluate:
  pgd: {name: attack, attack: {name: pgd, steps: 20, step_size: 1/255}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """All that is wrong with the base spec under overrides."""
    with pytest.raises(SpecError) as caught:
        ExperimentSpec.read(path, overrides)
    return caught.value.problems


# Values


def test_numbers_reach_the_spec_as_they_were_written(base: Path) -> None:
    spec = ExperimentSpec.read(base)
    assert spec.threat.eps == Fraction(8, 255)
    assert spec.train.lr == 1e-4
    assert spec.defense.parameters["beta"] == 6.0
    assert spec.train.schedule == MemberSpec("schedules", "piecewise", {"at": (0.5, 0.75), "factor": 0.1})


@pytest.mark.parametrize(
    ("text", "exact"),
    [("8/255", Fraction(8, 255)), ("0.031", Fraction(31, 1000)), ("1e-2", Fraction(1, 100)), ("0", 0)],
)
def test_eps_is_exact(base: Path, text: str, exact: Fraction) -> None:
    assert ExperimentSpec.read(base, [f"threat.eps={text}"]).threat.eps == exact


def test_every_default_is_written_out(base: Path) -> None:
    plain = ExperimentSpec.read(base).to_plain()
    assert plain["seed"] == 0
    assert plain["train"]["optimizer"] == {"name": "sgd", "momentum": 0.9, "nesterov": False}
    assert plain["data"] == {
        "name": "digits",
        "val_size": 50,
        "train_size": None,
        "augment": {
            "crop": 0,
            "pad_mode": "reflect",
            "flip": False,
            "cutout": 0,
            "resized_crop": 0.0,
            "rotate": 0.0,
            "jitter": 0.0,
        },
        "mixer": {"name": "none"},
        "label_smoothing": 0.0,
        "smoothing_over": "all",
        "smoothing_for": "loss",
        "extra": None,
        "workers": 2,
    }
    assert plain["evaluate"]["clean"] == {
        "name": "clean",
        "batch_size": 500,
        "examples": None,
        "save_examples": False,
    }
    assert "claim" not in plain


def test_the_mapping_of_evaluations_may_be_missing_or_empty(base: Path) -> None:
    assert ExperimentSpec.read(base, ["evaluate=null"]).evaluate == {}
    assert ExperimentSpec.read(base, ["evaluate={}"]).evaluate == {}


# Problems

WRONG = [
    ("train.epochs=ten", "train.epochs: 'ten' is not a whole number"),
    ("train.epochs=10.5", "train.epochs: 10.5 is not a whole number"),
    ("train.epochs=10.0", "train.epochs: 10.0 is not a whole number"),
    ("train.epochs=-1", "train.epochs: -1 is outside the range: must be >= 0"),
    ("train.epochs=null", "train.epochs: nothing is not a whole number"),
    ("train.epochs=true", "train.epochs: true is not a whole number"),
    ("train.batch_size=0", "train.batch_size: 0 is outside the range: must be >= 1"),
    ("seed=one", "seed: 'one' is not a whole number"),
    (f"seed={'1' * 5000}", "seed: '111"),
    ("seed=-1", "seed: -1 is outside the range: must be >= 0"),
    ("train.lr=fast", "train.lr: 'fast' is not a number"),
    ("train.lr=0", "train.lr: 0 is outside the range: must be > 0"),
    ("train.lr=true", "train.lr: true is not a number"),
    ("train.lr=1e999", "train.lr: "),
    ("train.weight_decay=-1e-4", "train.weight_decay: -0.0001 is outside the range: must be >= 0"),
    ("train.grad_clip=no", "train.grad_clip: 'no' is not a number"),
    ("train.drop_last=yes", "train.drop_last: 'yes' is not true or false"),
    ("train.drop_last=1", "train.drop_last: 1 is not true or false"),
    ("train.precision=fp17", "train.precision: 'fp17' is not one of the choices; did you mean 'fp16'?"),
    ("train.channels_last=outo", "train.channels_last: 'outo' is not one of the choices; did you mean 'auto'?"),
    ("train.select=robusst", "train.select: 'robusst' is not one of the choices; did you mean 'robust'?"),
    ("train.device=0", "train.device: 0 is not text; put quotes around it"),
    ("train=5", "train: 5 is not a mapping of epochs, "),
    ("train=null", "train: nothing is not a mapping of epochs, "),
    ("train.optimizer=sdg", "train.optimizer.name: unknown name 'sdg' in optimizers; did you mean 'sgd'?"),
    ("train.schedule=3", "train.schedule: 3; write {name: ...} with one of constant, "),
    ("train.schedule={factor: 0.1}", "train.schedule: no name; write {name: ...} with one of constant, "),
    ("train.schedule.factor=1.5", "train.schedule.factor: 1.5 is outside the range: must be <= 1"),
    ("train.schedule.at=[0.5, half]", "train.schedule.at.1: 'half' is not a number"),
    ("train.schedule.at=0.5", "train.schedule.at: 0.5 is not a list of values, such as ["),
    *(
        (
            f"architecture={{name: resnet18, strides: {written}}}",
            f"architecture.strides: {found} is not a list of 4 values",
        )
        for written, found in (
            ("[1, 2, 2]", "[1, 2, 2]"),
            ("[1, 2, 2, 2, 2]", "[1, 2, 2, 2, 2]"),
            ("1122", "1122"),
            ("'1122'", "'1122'"),
        )
    ),
    ("architecture={name: resnet18, strides: [1, 2, 0, 2]}", "architecture.strides.2: 0 is outside the range"),
    ("train.schedule={name: multistep, after: [1.5]}", "train.schedule.after.0: 1.5 is not a whole number"),
    ("train.schedule={name: multistep, after: [1, 2], factor: 2}", "train.schedule.factor: 2 is outside the range"),
    (
        "train.schedule={name: multistep, after: [1, 2], factor: [0.1, 2]}",
        "train.schedule.factor.1: 2 is outside the range",
    ),
    ("train.schedule=multistep", "train.schedule.after: missing; 'multistep' needs it (epochs done before each drop"),
    ("threat=8/255", "threat: "),
    ("threat.eps=big", "threat.eps: 'big' is not a number or a quotient such as 8/255"),
    ("threat.eps=-8/255", "threat.eps: "),
    ("threat.eps=8", "threat.eps: 8 is larger than the pixel range [0, 1]; write 8/255"),
    ("threat.eps=true", "threat.eps: true is not a number or a quotient such as 8/255"),
    ("threat.eps=1e999", "threat.eps: "),
    ("threat.eps=[1]", "threat.eps: "),
    ("threat.norm=Linf", "threat.norm: 'Linf' is not one of the choices; did you mean 'linf'? (known: l1, l2, linf)"),
    ("threat.esp=1", "threat.esp: unknown parameter of threat; did you mean 'eps'?"),
    ("defense.bta=6", "defense.bta: unknown parameter of 'trades' in defenses; did you mean 'beta'?"),
    ("defense.clean_forwards=3", "defense.clean_forwards: 3 is not one of the choices"),
    ("defense.weights=awpp", "defense.weights.name: unknown name 'awpp' in weights; did you mean 'awp'?"),
    ("defense.averaging={name: ema, decay: 2}", "defense.averaging.decay: 2 is outside the range: must be <= 1"),
    ("defense=[trades]", "defense: "),
    ("defense=tradess", "defense.name: unknown name 'tradess' in defenses; did you mean 'trades'?"),
    ("data.augment=3", "data.augment: 3 is not a mapping of crop, pad_mode, flip, cutout"),
    ("data.augment.crop=1/2", "data.augment.crop: "),
    ("data.augment.flop=true", "data.augment.flop: unknown parameter of augment; did you mean 'flip'?"),
    ("data.val_sise=5", "data.val_sise: unknown parameter of 'digits' in datasets; did you mean 'val_size'?"),
    ("data=npz", "data.path: missing; 'npz' needs it (path of the file"),
    ("name=a/b", "name: 'a/b'"),
    ("name=../up", "name: '../up'"),
    ("name=.hidden", "name: '.hidden'"),
    ("name=5", "name: 5 is not text; put quotes around it"),
    ("name=null", "name: nothing is not text"),
    ("evaluate=3", "evaluate: not a mapping of result names to evaluators"),
    ("evaluate=false", "evaluate: not a mapping of result names to evaluators"),
    ("evaluate.pgd=pgd", "evaluate.pgd.name: 'pgd' is an attack, not an evaluator; write {name: attack, attack: pgd}"),
    ("evaluate.clean=cleen", "evaluate.clean.name: unknown name 'cleen' in evaluators; did you mean 'clean'?"),
    ("evaluate.clean.examples=0", "evaluate.clean.examples: 0 is outside the range: must be >= 1"),
    ("evaluate.pgd={name: attack, attack: {name: pdg}}", "evaluate.pgd.attack.name: unknown name 'pdg' in attacks"),
    ("evaluate.pgd=attack", "evaluate.pgd.attack: missing; 'attack' needs it (the attack"),
    ("evaluate.w={name: worst_case, members: clean}", "evaluate.w.members: 'clean' is not a list"),
    ("evaluate.w={name: worst_case, members: [clean, cleann]}", "evaluate.w.members.1.name: unknown name 'cleann'"),
    ("evaluate.a/b=clean", "evaluate.a/b: names of results may contain letters"),
    ("claim=5", "claim: 5 is not a mapping of source, "),
    ("claim=0", "claim: 0 is not a mapping of source, "),
    ("claim={table: '1'}", "claim.source: missing; claim needs it (paper or code with the result"),
    ("claim={source: x, metrics: {clean: 88}}", "claim.metrics.clean: 88 is outside the range: must be <= 1"),
    ("claim={source: x, metrics: {clean: high}}", "claim.metrics.clean: 'high' is not a number"),
    ("trian.epochs=1", "trian: unknown key; did you mean 'train'?"),
    ("train.seed=1", "train.seed: unknown parameter of train; write it at the top of the spec, as seed"),
    ("train.eps=1", "train.eps: unknown parameter of train; write it under threat, as threat.eps"),
    ("beta=5", "beta: unknown key; write it under defense, as defense.beta"),
    ("norm=l2", "norm: unknown key; write it under threat, as threat.norm"),
    ("evaluate.clean.beta=5", "evaluate.clean.beta: unknown parameter of 'clean' in evaluators"),
]


@pytest.mark.parametrize(("override", "text"), WRONG, ids=[override[:60] for override, _ in WRONG])
def test_a_wrong_value_is_named_with_its_place_and_what_would_work(base: Path, override: str, text: str) -> None:
    found = problems(base, override)
    assert all(problem.startswith(f"override {override}: ") for problem in found), found
    assert any(problem.removeprefix(f"override {override}: ").startswith(text) for problem in found), found


def test_keys_of_an_evaluator_are_not_sought_in_other_parts_of_the_spec(base: Path) -> None:
    (problem,) = problems(base, "evaluate.clean.beta=5")
    assert "write it" not in problem


def test_all_problems_are_found_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "\n".join(
            [
                "name: bad",
                "sead: 3",
                "data: {name: digits, val_size: 10.5}",
                "threat:",
                "  norm: linf",
                "  eps: 8",
                "defense:",
                "  name: trades",
                "  bta: 6",
                "train:",
                "  epochs: 5",
                "  lr: no",
                "evaluate:",
                "  pgd:",
                "    name: attack",
                "    attack: {name: pgd, loss: kll}",
            ]
        ),
        encoding="utf-8",
    )
    with pytest.raises(SpecError) as caught:
        ExperimentSpec.read(path)
    starts = [
        "architecture: missing; every spec needs it",
        "line 2: sead: unknown key; did you mean 'seed'?",
        "line 3: data.val_size: 10.5 is not a whole number",
        "line 6: threat.eps: 8 is larger than the pixel range [0, 1]; write 8/255",
        "line 9: defense.bta: unknown parameter of 'trades' in defenses; did you mean 'beta'?",
        "line 12: train.lr: 'no' is not a number",
        "line 16: evaluate.pgd.attack.loss: 'kll' is not one of the choices; did you mean 'kl'?",
    ]
    assert str(caught.value).startswith(f"{path}: {len(starts)} problems\n")
    assert len(caught.value.problems) == len(starts), caught.value.problems
    for problem, start in zip(caught.value.problems, starts, strict=True):
        assert start in problem


@pytest.mark.parametrize("text", ["", "- a\n", "just text", "5"])
def test_a_spec_is_a_mapping(text: str) -> None:
    with pytest.raises(SpecError, match="not a mapping; a spec has the keys name, seed, data"):
        ExperimentSpec.parse(text, "s")


def test_a_member_is_named_before_it_is_given_parameters(base: Path) -> None:
    (problem,) = problems(base, "train.optimizer.momentum=0.5")
    assert "train.optimizer: no name; write {name: ...} with one of adam, " in problem


def test_a_nearest_name_is_offered_only_where_one_is_near(base: Path) -> None:
    (problem,) = problems(base, "defense=zzzzzz")
    assert "did you mean" not in problem
    assert "(nearest of " in problem
    assert problem.count(", ") == 4


# Overrides


def test_overrides_replace_nested_values_and_the_last_one_wins(base: Path) -> None:
    spec = ExperimentSpec.read(base, ["train.epochs=30", "seed=4", "defense.beta=1/2", "train.epochs=31"])
    assert (spec.train.epochs, spec.seed, spec.defense.parameters["beta"]) == (31, 4, 0.5)


def test_a_whole_part_is_replaced_before_its_keys_in_any_order(base: Path) -> None:
    first = ExperimentSpec.read(base, ["defense=pgd_at", "defense.steps=3"])
    assert ExperimentSpec.read(base, ["defense.steps=3", "defense=pgd_at"]) == first
    assert first.defense.parameters["steps"] == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "defense.name=free",
            "'free' does not take beta and steps, which the spec sets for another choice; write defense=free instead, "
            "which also drops step_size; repeat what should stay",
        ),
        ("architecture.name=vgg11", "'vgg11' does not take depth and form, which the spec sets for another choice; "),
        ("data.name=npz", "'npz' does not take root, which the spec sets for another choice; write data=npz instead"),
        ("evaluate.pgd.name=autoattack", "'autoattack' does not take attack, which the spec sets for another choice; "),
        ("evaluate.pgd.attack.name=fab", "'fab' does not take step_size, which the spec sets for another choice; "),
        ("train.optimizer.name=adamw", "'adamw' does not take momentum, which the spec sets for another choice; "),
    ],
)
def test_a_new_name_that_does_not_fit_the_settings_says_how_to_replace_all(
    tmp_path: Path, override: str, said: str
) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(WHOLE, encoding="utf-8")
    (problem,) = [text for text in problems(path, override) if "missing" not in text]
    assert problem.startswith(f"override {override}: {override.partition('=')[0]}: {said}")
    # What the message says to write.
    key, _, name = override.partition("=")
    left = f"{key.removesuffix('.name')}={name}"
    assert f"write {left} instead" in problem
    needed = ["data.path=x.npz"] if name == "npz" else []
    assert ExperimentSpec.read(path, [left, *needed])


def test_settings_of_other_overrides_are_not_blamed_on_a_new_name(base: Path) -> None:
    found = problems(base, "defense.name=free", "defense.gamma=1")
    assert [problem.partition(": ")[0] for problem in found] == [
        "override defense.gamma=1",
        "override defense.name=free",
    ]
    assert "unknown parameter of 'free'" in found[0]
    assert "does not take beta, which the spec sets" in found[1]


def test_an_override_works_in_a_member_written_as_its_name(base: Path) -> None:
    spec = ExperimentSpec.read(base, ["train.schedule=cosine", "train.schedule.warmup=2"])
    assert spec.train.schedule == MemberSpec(
        "schedules", "cosine", {"warmup": 2.0, "cooldown": 0.0, "initial": 0.0, "final": 0.0}
    )
    spec = ExperimentSpec.read(base, ["architecture.width=4", "evaluate.clean.examples=5"])
    assert spec.architecture.name == "small_cnn"
    assert spec.architecture.parameters["width"] == 4
    assert spec.evaluate["clean"].options.examples == 5


def test_an_override_makes_the_mappings_on_its_way(base: Path) -> None:
    spec = ExperimentSpec.read(base, ["data.augment.crop=2", "claim.source=a paper"])
    assert spec.data.options.augment.crop == 2
    assert spec.claim is not None
    assert spec.claim.source == "a paper"


def test_an_override_may_hold_a_mapping_an_equals_sign_or_nothing(base: Path) -> None:
    spec = ExperimentSpec.read(
        base,
        ["evaluate.pgd={name: attack, attack: {name: pgd, steps: 3}}", "claim={source: 'a=b'}", "train.grad_clip="],
    )
    assert spec.evaluate["pgd"].parameters["attack"].parameters["steps"] == 3
    assert spec.claim is not None
    assert spec.claim.source == "a=b"
    assert spec.train.grad_clip is None


@pytest.mark.parametrize("override", ["train.epochs", "=3", ".epochs=3", "train.=3", "train..epochs=3", ""])
def test_what_is_no_override_is_refused_with_an_example(base: Path, override: str) -> None:
    with pytest.raises(RobustCliError, match=r"write key.subkey=value, such as train.epochs=30"):
        ExperimentSpec.read(base, [override])


@pytest.mark.parametrize("device", ["cpu:0", "cpu:1", "mps", "cuda:-1", "CPU", "''"])
def test_a_device_that_does_not_exist_is_refused_when_the_spec_is_read(base: Path, device: str) -> None:
    (problem,) = problems(base, f"train.device={device}")
    assert problem.endswith("is not one of auto, cpu, cuda, cuda:i")
    stored = ExperimentSpec.read(base).to_yaml().replace("device: auto", f'device: "{device}"')
    assert ExperimentSpec.parse(stored, "a stored spec").train.device == device
    for good in ("cpu", "cuda", "cuda:1", "auto"):
        assert ExperimentSpec.read(base, [f"train.device={good}"]).train.device == good


def test_an_override_cannot_enter_a_number(base: Path) -> None:
    with pytest.raises(RobustCliError, match="there is no mapping to set 'x' in"):
        ExperimentSpec.read(base, ["train.epochs.x=3"])


def test_an_override_that_is_no_yaml_is_refused(base: Path) -> None:
    with pytest.raises(RobustCliError, match="not YAML"):
        ExperimentSpec.read(base, ["defense={name: trades"])


def test_problems_name_the_override_they_come_from_and_the_lines_of_others(base: Path) -> None:
    found = problems(base, "train.epochs=x", "train.lr=y", "defense.name=nope")
    assert [problem.partition(": ")[0] for problem in found] == [
        "override defense.name=nope",
        "override train.epochs=x",
        "override train.lr=y",
    ]


def test_a_value_inside_an_override_is_not_blamed_on_a_line_of_the_file(base: Path) -> None:
    (problem,) = problems(base, "defense={name: trades, beta: x}")
    assert problem.startswith("override defense={name: trades, beta: x}: defense.beta: ")


def test_text_is_overridden_as_files_are() -> None:
    text = override_text(BASE, ["seed=7", "train.schedule.factor=0.5"], "s")
    spec = ExperimentSpec.parse(text, "s")
    assert (spec.seed, spec.train.schedule.parameters["factor"]) == (7, 0.5)
    assert override_text(BASE, [], "s") == BASE


# Guards: each one fires, and only on its side of the limit.

PGD = "evaluate.p={name: attack, attack: {name: pgd, %s}}"
REFUSED = [
    ("eps_in_pixels", ["threat.eps=1.01"], "threat.eps: 1.01 is larger than", ["threat.eps=1"]),
    ("eps_in_pixels", ["threat.eps=8"], "write 8/255", ["threat.eps=8", "threat.norm=l2"]),
    (
        "other_eps_in_pixels",
        ["defense={name: multi_norm, others: [{norm: linf, eps: 8}]}"],
        "defense.others.0.eps: 8 is larger than",
        ["defense={name: multi_norm, others: [{norm: l2, eps: 8}]}"],
    ),
    (
        "other_eps_in_pixels",
        ["evaluate.p={name: other_threat, norm: linf, eps: 8, evaluator: clean}"],
        "evaluate.p.eps: 8 is larger than",
        ["evaluate.p={name: other_threat, norm: l1, eps: 8, evaluator: clean}"],
    ),
    (
        "others_keep_their_radius",
        ["defense={name: multi_norm, others: [{norm: l2, eps: 1}]}", "train.eps_warmup=1"],
        "train.eps_warmup: only the spec's threat would grow",
        ["defense={name: multi_norm, others: []}", "train.eps_warmup=1"],
    ),
    (
        "architecture_has_its_parts",
        ["defense={name: multibn, others: []}"],
        "defense.name: 'multibn' trains the architecture 'multibn'",
        ["defense={name: multibn, others: []}", "architecture={name: multibn, network: resnet18}"],
    ),
    (
        "architecture_has_its_parts",
        [
            "defense={name: multibn, others: [{norm: l2, eps: 1}]}",
            "architecture={name: multibn, network: resnet18, branches: 2}",
        ],
        "architecture.branches: 2; clean images, the threat and 1 others are 3 kinds; write 3",
        [
            "defense={name: multibn, others: [{norm: l2, eps: 1}]}",
            "architecture={name: multibn, network: resnet18, branches: 3}",
        ],
    ),
    (
        "architecture_has_its_parts",
        ["defense=cifs", "architecture={name: multibn, network: resnet18}"],
        "defense.name: 'cifs' trains the architecture 'cifs', around any network, or a network with channel_gate: "
        "cifs; this is 'multibn'",
        ["defense=cifs", "architecture={name: cifs, network: resnet18}"],
    ),
    (
        "architecture_has_its_parts",
        ["defense=cifs", "architecture={name: resnet18, channel_gate: se}"],
        "defense.name: 'cifs' trains the architecture 'cifs', around any network, or a network with channel_gate: "
        "cifs; this is 'resnet18'",
        ["defense=cifs", "architecture={name: resnet18, channel_gate: cifs}"],
    ),
    (
        "parts_can_be_reached",
        ["architecture={name: resnet18, channel_gate: cifs}", "train.compile=true"],
        "train.compile: a compiled network does not show the parts that 'cifs' adds",
        ["architecture={name: resnet18, channel_gate: se}", "train.compile=true"],
    ),
    (
        "parts_can_be_reached",
        ["architecture={name: multibn, network: resnet18}", "train.compile=true"],
        "train.compile: a compiled network does not show the parts that 'multibn' adds",
        ["train.compile=true"],
    ),
    (
        "branches_keep_their_statistics",
        ["architecture={name: multibn, network: resnet18}", "defense.averaging={name: ema, buffers: re_estimate}"],
        "defense.averaging.buffers: re_estimate gives every branch the statistics of clean images",
        ["architecture={name: multibn, network: resnet18}", "defense.averaging={name: ema, buffers: copy}"],
    ),
    (
        "halves_stay_apart",
        ["defense=dsara", "architecture=dsara", "train.batch_size=33"],
        "train.batch_size: 33; 'dsara' needs as many images of each half of the data, an even number",
        ["defense=dsara", "architecture=dsara", "train.batch_size=34"],
    ),
    (
        "halves_stay_apart",
        ["defense=dsara", "architecture=dsara", "data.mixer=cutmix"],
        "data.mixer: 'dsara' learns from two halves of the data",
        ["defense=natural", "data.mixer=cutmix"],
    ),
    (
        "processes_stop_together",
        ["train.sync_batch_norm=true", "defense.attack_bn=train", "defense.attack={name: pgd, keep: fooled}"],
        "defense.attack.keep: with sync_batch_norm and attack_bn train, all processes have to take the same steps",
        ["train.sync_batch_norm=true", "defense.attack_bn=eval", "defense.attack={name: pgd, keep: fooled}"],
    ),
    (
        "processes_stop_together",
        ["train.sync_batch_norm=true", "defense.attack_bn=batch_no_update", "defense.attack=apgd"],
        "'apgd' takes as many as its images need; write another attack, or attack_bn: eval",
        ["train.sync_batch_norm=true", "defense.attack_bn=batch_no_update", "defense.attack=mim"],
    ),
    ("step_size_in_pixels", ["defense.step_size=2"], "defense.step_size: 2 is larger", ["defense.step_size=1"]),
    (
        "step_size_in_pixels",
        [PGD % "step_size: 2"],
        "evaluate.p.attack.step_size: 2 is larger",
        [PGD % "step_size: 2", "threat.norm=l2"],
    ),
    (
        "step_size_in_pixels",
        ["defense.attack={name: adam_pgd, step_sizes: [25, 0.01]}", "threat.norm=l2"],
        "defense.attack.step_sizes.0: 25 is larger than the pixel range [0, 1]; write 25/255",
        ["defense.attack={name: adam_pgd, step_sizes: [25/255, 0.01]}"],
    ),
    (
        "step_size_in_pixels",
        ["evaluate.w={name: worst_case, members: [clean, {name: attack, attack: {name: pgd, step_size: 2}}]}"],
        "evaluate.w.members.1.attack.step_size: 2 is larger",
        ["evaluate.w={name: worst_case, members: [clean, {name: attack, attack: {name: pgd, step_size: 2/255}}]}"],
    ),
    (
        "selection_has_images",
        ["train.select=robust", "data.val_size=0"],
        "train.select: 'robust' needs validation images",
        ["train.select=robust", "data.val_size=1"],
    ),
    (
        "selection_has_images",
        ["train.select=clean", "data.val_size=0"],
        "train.select: 'clean' needs",
        ["train.select=clean", "data.val_size=0", "train.allow_test_selection=true"],
    ),
    (
        "selection_has_images",
        ["train.select=clean", "train.allow_test_selection=true"],
        "train.allow_test_selection: true, but nothing",
        ["train.select=last", "data.val_size=0"],
    ),
    (
        "selection_has_images",
        ["train.select=last", "data.val_size=0", "train.allow_test_selection=true"],
        "train.allow_test_selection: true, but nothing",
        ["train.select=last"],
    ),
    ("warmups_end", ["train.eps_warmup=10.5"], "train.eps_warmup: 10.5 epochs are more", ["train.eps_warmup=10"]),
    (
        "warmups_end",
        ["train.schedule=cosine", "train.schedule.warmup=10"],
        "train.schedule.warmup: 10 epochs leave nothing",
        ["train.schedule=cosine", "train.schedule.warmup=9.5"],
    ),
    (
        "warmups_end",
        ["train.schedule={name: cosine, warmup: 4, cooldown: 6}"],
        "train.schedule.cooldown: 6 epochs after a warm-up of 4 leave nothing",
        ["train.schedule={name: cosine, warmup: 4, cooldown: 5}"],
    ),
    (
        "warmups_end",
        ["train.schedule={name: cosine, initial: 0.1}"],
        "train.schedule.initial: there is no warm-up",
        ["train.schedule={name: cosine, initial: 0.1, warmup: 1}"],
    ),
    (
        "warmups_end",
        ["train.eps_warmup_form=sine"],
        "train.eps_warmup_form: 'sine', but eps_warmup is 0",
        ["train.eps_warmup_form=sine", "train.eps_warmup=2"],
    ),
    (
        "schedule_inside_run",
        ["train.schedule=cyclic", "train.schedule.peak=1"],
        "train.schedule.peak: ",
        ["train.schedule=cyclic", "train.schedule.peak=0.9"],
    ),
    ("schedule_inside_run", ["train.schedule.at=[0.5, 1.5]"], "train.schedule.at: ", ["train.schedule.at=[0.1, 0.9]"]),
    (
        "momentum_has_a_range",
        ["train.schedule={name: cyclic, momentum: [0.9, 0.8]}"],
        "train.schedule.momentum: [0.9, 0.8]; expected the lowest first, then the highest; write [0.8, 0.9]",
        ["train.schedule={name: cyclic, momentum: [0.8, 0.9]}"],
    ),
    (
        "nesterov_has_momentum",
        ["train.optimizer={name: sgd, nesterov: true, momentum: 0}"],
        "train.optimizer.nesterov: true needs a momentum above 0",
        ["train.optimizer={name: sgd, nesterov: true}"],
    ),
    (
        "attack_supports_the_norm",
        ["evaluate.p={name: attack, attack: carlini_wagner}"],
        "evaluate.p.attack: 'carlini_wagner' supports only l2; the threat is linf",
        ["evaluate.p={name: attack, attack: carlini_wagner}", "threat.norm=l2"],
    ),
    (
        "attack_supports_the_norm",
        ["threat.norm=l1", "defense.attack={name: hop_skip_jump}"],
        "defense.attack: 'hop_skip_jump' supports only linf and l2; the threat is l1",
        ["defense.attack={name: hop_skip_jump}"],
    ),
    (
        "attack_can_start",
        [PGD % "loss: kl, start: clean"],
        "evaluate.p.attack.start: 'clean' with loss 'kl' never moves",
        [PGD % "loss: kl, start: gaussian"],
    ),
    (
        "attack_can_start",
        [PGD % "loss: squared, start: clean"],
        "evaluate.p.attack.start: 'clean' with loss 'squared' never moves",
        [PGD % "loss: squared, start: random"],
    ),
    (
        "attack_can_start",
        ["defense.attack={name: pgd, loss: kl, start: clean}"],
        "defense.attack.start: 'clean' with loss 'kl'",
        ["defense.attack={name: pgd, loss: ce, start: clean}"],
    ),
    (
        "attack_can_start",
        [PGD % "start: clean, restarts: 2"],
        "evaluate.p.attack.restarts: restarts from the clean image are all the same",
        [PGD % "start: clean, restarts: 1"],
    ),
    (
        "clean_batches_can_start",
        ["defense={name: pgd_at, clean_batches: 0.2, start: clean}"],
        "defense.clean_batches: 'pgd_at' starts at the clean images in every batch",
        ["defense={name: pgd_at, clean_batches: 0.2}"],
    ),
    (
        "clean_batches_can_start",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: fgsm}"],
        "defense.clean_batches: 'fgsm' starts at the clean images in every batch",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: {name: fgsm, start: random}}"],
    ),
    (
        "clean_batches_can_start",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: apgd}"],
        "defense.attack: 'apgd' cannot start at the clean images",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: eot_pgd}"],
    ),
    (
        "clean_batches_can_start",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: early_stopped_pgd}"],
        "defense.attack: 'early_stopped_pgd' cannot start at the clean images",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: {name: fosc_pgd, criterion: 0.1}}"],
    ),
    (
        "clean_batches_can_start",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: {name: pgd, loss: kl}}"],
        "defense.attack.loss: 'kl' has no gradient at the clean images",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: {name: pgd, loss: margin}}"],
    ),
    (
        "clean_batches_can_start",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: {name: pgd, restarts: 2}}"],
        "defense.attack.restarts: restarts from the clean images",
        ["defense={name: pgd_at, clean_batches: 0.2, attack: {name: pgd, restarts: 1}}"],
    ),
    (
        "evaluated_attack_stays_inside",
        ["evaluate.p={name: attack, attack: {name: n_fgsm, clip: 1.5}}"],
        "evaluate.p.attack.clip: its images would leave the threat set",
        ["evaluate.p={name: attack, attack: {name: n_fgsm, clip: 1}}"],
    ),
    (
        "evaluated_attack_stays_inside",
        ["evaluate.p={name: attack, attack: {name: n_fgsm, clip: null}}"],
        "evaluate.p.attack.clip: ",
        ["defense.attack={name: n_fgsm, clip: null}"],
    ),
    (
        "gradient_can_be_differentiated",
        ["defense=grad_align", "train.precision=bf16"],
        "train.precision: bf16 is too coarse for the second derivatives of 'grad_align'",
        ["defense=grad_align"],
    ),
    (
        "gradient_can_be_differentiated",
        ["defense=grad_align", "train.compile=true"],
        "train.compile: a compiled network has no second derivatives",
        ["defense=fgsm", "train.compile=true", "train.precision=bf16"],
    ),
    (
        "precision_can_be_compiled",
        ["train.precision=fp16", "train.compile=true"],
        "train.compile: passes in fp16 are not compiled",
        ["train.precision=bf16", "train.compile=true"],
    ),
    (
        # N-FGSM's own parameters are those of its attack.
        "replaced_part_has_no_parameters",
        ["defense={name: n_fgsm, noise: 3, attack: pgd}"],
        "defense.noise: ",
        ["defense={name: n_fgsm, attack_bn: eval, attack: pgd}"],
    ),
    (
        # The attack that had the steps is replaced, so they have no effect.
        "replaced_part_has_no_parameters",
        ["defense.steps=3", "defense.attack=fgsm"],
        "defense.steps: ",
        ["defense.beta=3", "defense.attack=fgsm"],
    ),
    (
        # The first factor would apply at the first epoch reached, epoch 2.
        "drops_are_in_order",
        ["train.schedule={name: multistep, after: [4, 2], factor: [0.1, 0.5]}"],
        "train.schedule.after: [4, 2] with one factor for each; expected rising numbers, such as [2, 4]",
        ["train.schedule={name: multistep, after: [2, 4], factor: [0.1, 0.5]}"],
    ),
    (
        "drops_are_in_order",
        ["train.schedule={name: multistep, after: [-1, 2]}"],
        "train.schedule.after: [-1, 2]: a drop needs at least one epoch before it",
        ["train.schedule={name: multistep, after: [3, 2]}"],
    ),
    (
        "claim_is_evaluated",
        ["claim={source: x, metrics: {cleen: 0.9}}"],
        "claim.metrics.cleen: is not evaluated; did you mean 'clean'?",
        ["claim={source: x, metrics: {clean: 0.9}}"],
    ),
    (
        "schedule_has_its_attack",
        ["defense={name: dynamic_at, attack: pgd}"],
        "defense.attack: 'dynamic_at' changes the criterion of its attack; 'pgd' has none, fosc_pgd does",
        ["defense={name: dynamic_at, attack: {name: fosc_pgd, loss: margin}}"],
    ),
    (
        "schedule_has_its_attack",
        ["defense={name: fat, attack: fgsm}"],
        "defense.attack: 'fat' changes the patience of its attack; 'fgsm' has none, early_stopped_pgd does",
        ["defense={name: fat, attack: {name: early_stopped_pgd, loss: kl}}"],
    ),
    (
        "attack_is_measured",
        ["defense={name: fw_at_adapt, monitor_images: 128, attack: pgd}"],
        "defense.attack: 'fw_at_adapt' measures the distortion of its attack; 'pgd' reports none, frank_wolfe does",
        ["defense={name: fw_at_adapt, monitor_images: 128, attack: {name: frank_wolfe, loss: margin}}"],
    ),
    (
        "stages_are_counted",
        ["defense={name: fat, patiences: [0, 1], after: [2, 3]}"],
        "defense.patiences: has 2 entries and 'after' has 2; expected one more",
        ["defense={name: fat, patiences: [0, 1, 3], after: [2, 3]}"],
    ),
    (
        "features_can_be_read",
        ["defense=dial", "train.compile=true"],
        "train.compile: a compiled network does not show the features that 'dial' reads",
        ["train.compile=true"],
    ),
    (
        "distortion_is_reachable",
        ["defense={name: fw_at_adapt, max_distortion: 2.0}"],
        "defense.max_distortion: 2 is outside (1/3, 1]",
        ["defense={name: fw_at_adapt, max_distortion: 1.0}"],
    ),
    (
        "distortion_is_reachable",
        ["defense={name: fw_at_adapt, max_distortion: 0.33}"],
        "defense.max_distortion: 0.33 is outside (1/3, 1]",
        ["defense={name: fw_at_adapt, max_distortion: 0.34}"],
    ),
    (
        "monitoring_ends",
        ["defense={name: fw_at_adapt, max_distortion: 0.9}", "data.train_size=1024"],
        "defense.monitor_images: 1000 images are 8 batches, and an epoch has 8: what is decided then is never used; "
        "write at most 896",
        ["defense={name: fw_at_adapt, max_distortion: 0.9}", "data.train_size=1025"],
    ),
    (
        "monitoring_ends",
        ["defense=fw_at_adapt", "data.train_size=1025", "train.drop_last=true"],
        "defense.monitor_images: 1000 images are 8 batches, and an epoch has 8",
        ["defense=fw_at_adapt", "data.train_size=1152", "train.drop_last=true"],
    ),
    (
        "monitoring_ends",
        ["defense=fw_at_adapt", "data.train_size=128"],
        "defense.monitor_images: 1000 images are 8 batches, and an epoch has 1: what is decided then is never used; "
        "use a smaller train.batch_size",
        ["defense={name: fw_at_adapt, monitor_images: 1}", "data.train_size=128", "train.batch_size=64"],
    ),
    (
        "monitoring_ends",
        ["defense=fw_at_adapt", "data.val_size=430"],
        "defense.monitor_images: 1000 images are 8 batches, and an epoch has 8",
        ["defense=fw_at_adapt", "data.val_size=400"],
    ),
    (
        "places_of_a_batch_stay",
        ["defense=free", "data.extra={path: more.npz}"],
        "data.extra: 'free' carries its perturbation over from place to place in the batch",
        ["defense=pgd_at", "data.extra={path: more.npz}"],
    ),
    (
        "smoothing_has_labels",
        ["data.smoothing_for=both"],
        "data.smoothing_for: 'both', but no label is smoothed",
        ["data.smoothing_for=both", "data.extra={path: more.npz, label_smoothing: 0.1}"],
    ),
    (
        "crops_are_cut",
        ["data={name: image_folder, root: images, crop_from: whole}"],
        "data.crop_from: 'whole', but augment.resized_crop is 0, so nothing is cut",
        ["data={name: image_folder, root: images, crop_from: whole, augment: {resized_crop: 0.1}}"],
    ),
    (
        "crops_are_cut",
        [
            "data={name: image_folder, root: images, crop_from: whole, augment: {resized_crop: 0.1}, "
            "extra: {path: more.npz}}"
        ],
        "data.crop_from: 'whole', but extra images have no whole images",
        ["data={name: image_folder, root: images, augment: {resized_crop: 0.1}, extra: {path: more.npz}}"],
    ),
    (
        "labels_are_whole",
        ["defense=mart", "data.mixer=cutmix"],
        "defense.soft_labels: 'mart' is published for whole labels, and 'cutmix' mixes them; leave that out, or write "
        "soft_labels: expected",
        ["defense={name: mart, soft_labels: expected}", "data.mixer=cutmix"],
    ),
    (
        "labels_are_whole",
        ["defense=cifs", "architecture={name: cifs, network: resnet18}", "data.label_smoothing=0.1"],
        "defense.soft_labels: 'cifs' is published for whole labels, and smoothing shares them out",
        ["defense=cifs", "architecture={name: cifs, network: resnet18}"],
    ),
    (
        "averages_are_many",
        ["defense={name: free, replays: 8, averaging: {name: swa, start_epoch: 5}}"],
        "defense.averaging: 'swa' takes in the weights of epochs, and 'free' makes 8 updates on each batch",
        ["defense={name: free, replays: 8, averaging: ema}"],
    ),
]
WARNED = [
    (
        "randomness_is_averaged",
        ["architecture.preprocess=resize_pad", "evaluate.aa=autoattack"],
        "evaluate.aa.version: 'resize_pad' is random",
        ["architecture.preprocess=resize_pad", "evaluate.aa={name: autoattack, version: rand}"],
    ),
    ("eps_is_exact", ["threat.eps=0.031"], "threat.eps: 0.031 is near 8/255", ["threat.eps=8/255"]),
    ("eps_is_exact", ["threat.eps=0.0313"], "threat.eps: 0.0313 is near", ["threat.eps=0.031", "threat.norm=l2"]),
    (
        "attack_reaches_eps",
        [PGD % "start: clean, steps: 3, step_size: 2/255"],
        "evaluate.p.attack: 3 steps of 0.007843 from the clean image cannot reach eps",
        [PGD % "start: clean, steps: 4, step_size: 2/255"],
    ),
    (
        "attack_reaches_eps",
        ["defense.attack={name: fgsm, step_size: 7/255}"],
        "defense.attack: one step of 0.02745 from the clean image cannot reach eps",
        ["defense.attack={name: fgsm, step_size: 7/255, start: random}"],
    ),
    (
        "attack_reaches_eps",
        ["defense={name: pgd_at, start: clean, steps: 3}"],
        "defense: 3 steps of 0.007843 from the clean image cannot reach eps 0.03137",
        ["defense={name: pgd_at, start: clean, steps: 4}"],
    ),
    (
        "attack_reaches_eps",
        ["defense={name: multi_norm, start: clean, steps: 4, others: [{norm: l2, eps: 0.5, step_size: 0.1}]}"],
        "defense.others.0: 4 steps of 0.1 from the clean image cannot reach eps 0.5",
        ["defense={name: multi_norm, start: clean, steps: 4, others: [{norm: l2, eps: 0.5}]}"],
    ),
    (
        "parts_begin",
        ["defense.weights={name: awp, warmup: 10}"],
        "defense.weights.warmup: 10 epochs of 10: 'awp' never begins",
        ["defense.weights={name: awp, warmup: 9}"],
    ),
    (
        "parts_begin",
        ["defense.averaging=swa"],
        "defense.averaging.start_epoch: 55 epochs of 10: 'swa' never begins",
        ["defense.averaging={name: swa, start_epoch: 9}"],
    ),
    (
        "drops_happen",
        ["train.schedule={name: multistep, after: [5, 10]}"],
        "train.schedule.after: [10] lie at or beyond the end of 10 epochs",
        ["train.schedule={name: multistep, after: [5, 9]}"],
    ),
    (
        "last_batch_has_images",
        ["data.train_size=129", "train.batch_size=64"],
        "train.batch_size: 64: the last batch of an epoch has 1 image, which is too few for batch statistics; write "
        "drop_last: true",
        ["data.train_size=129", "train.batch_size=64", "train.drop_last=true"],
    ),
    (
        "last_batch_has_images",
        ["data.train_size=129", "train.batch_size=1"],
        "train.batch_size: 1: the last batch of an epoch has 1 image, which is too few for batch statistics; use",
        ["data.train_size=129", "train.batch_size=2", "data.extra={path: more.npz, share: 0.5}"],
    ),
    (
        "distortion_tells",
        ["defense={name: fw_at_adapt, max_distortion: 0.745}"],
        "defense.max_distortion: 0.745: two steps of independent signs reach 0.745",
        ["defense={name: fw_at_adapt, max_distortion: 0.75}"],
    ),
    (
        "average_has_its_window",
        ["defense={name: pgd_at, averaging: {name: ema, decay: 0.999, ramp: false}}", "data.train_size=100"],
        "defense.averaging.decay: a window of 1000 updates",
        ["defense={name: pgd_at, averaging: {name: ema, decay: 0.999, ramp: true}}", "data.train_size=100"],
    ),
    (
        "average_has_its_window",
        ["defense={name: pgd_at, averaging: {name: ema, decay: 0.999, ramp: false}}", "data=cifar10", "train.epochs=5"],
        "defense.averaging.decay: a window of 1000 updates, and 1955 in all",
        ["defense={name: pgd_at, averaging: {name: ema, decay: 0.999, ramp: false}}", "data=cifar10", "train.epochs=6"],
    ),
    (
        "average_has_its_window",
        ["defense={name: pgd_at, averaging: {name: ema, decay: 0.99, ramp: false, warmup: 9}}"],
        "defense.averaging.decay: a window of 100 updates, and 11 after the warm-up",
        ["defense={name: free, replays: 20, averaging: {name: ema, decay: 0.99, ramp: false, warmup: 9}}"],
    ),
]
NOTED = [
    (
        "attack_reaches_far_side",
        [PGD % "start: random, steps: 7"],
        "evaluate.p.attack: 7 steps of 0.007843 from a random start cannot reach the far side of the threat set, up to "
        "0.06275 away",
        [PGD % "start: random, steps: 8"],
    ),
    (
        "attack_reaches_far_side",
        ["defense={name: trades, steps: 4}"],
        "defense: 4 steps of 0.007843 from a random start cannot reach the far side of the threat set, up to 0.03537",
        ["defense={name: trades, steps: 5}"],
    ),
    (
        "attack_reaches_far_side",
        ["defense={name: multi_norm, others: [{norm: l2, eps: 0.5, step_size: 0.05}]}"],
        "defense.others.0: 10 steps of 0.05 from a random start cannot reach the far side of the threat set, up to 1",
        ["defense={name: n_fgsm, step_size: 8/255}"],
    ),
    (
        "soft_labels_are_verified",
        [PGD % "steps: 10", "data.label_smoothing=0.1"],
        "evaluate.p: unverified: training with smoothed labels can hide gradients",
        [PGD % "steps: 10", "data.label_smoothing=0.1", "evaluate.aa=autoattack"],
    ),
    (
        "soft_labels_are_verified",
        [PGD % "steps: 10", "data.mixer=mixup"],
        "evaluate.p: unverified: training with mixed labels can hide gradients",
        ["evaluate.c=clean", "data.mixer=mixup"],
    ),
    (
        "soft_labels_are_verified",
        [PGD % "steps: 10", "defense={name: natural, label_smoothing: 0.1}"],
        "evaluate.p: unverified: training with smoothed labels can hide gradients",
        [PGD % "steps: 10", "defense=natural"],
    ),
]


@pytest.mark.parametrize(("guard", "bad", "text", "good"), REFUSED)
def test_a_combination_is_refused(base: Path, guard: str, bad: list[str], text: str, good: list[str]) -> None:
    found = problems(base, *bad)
    assert len(found) == 1
    assert text in found[0]
    ExperimentSpec.read(base, good)


@pytest.mark.parametrize(("guard", "odd", "text", "usual"), WARNED)
def test_a_combination_is_warned_of(base: Path, guard: str, odd: list[str], text: str, usual: list[str]) -> None:
    assert [text in warning for warning in ExperimentSpec.read(base, odd).warnings()] == [True]
    assert ExperimentSpec.read(base, usual).warnings() == []


@pytest.mark.parametrize(("guard", "odd", "text", "usual"), NOTED)
def test_a_combination_is_noted(base: Path, guard: str, odd: list[str], text: str, usual: list[str]) -> None:
    assert [text in note for note in ExperimentSpec.read(base, odd).notes()] == [True]
    assert ExperimentSpec.read(base, usual).notes() == []


@pytest.mark.parametrize(
    ("cases", "known"),
    [(REFUSED, GUARDS["refuse"]), (WARNED, GUARDS["warn"]), (NOTED, GUARDS["note"])],
    ids=["refused", "warned", "noted"],
)
def test_every_guard_has_a_case_here(cases: list[tuple[str, Any, Any, Any]], known: list[Guard]) -> None:
    assert {case[0] for case in cases} == {guard.__name__ for guard in known}


def test_a_run_of_no_epochs_may_keep_its_schedule(base: Path) -> None:
    ExperimentSpec.read(base, ["train.epochs=0", "train.schedule={name: cosine, warmup: 3}", "train.eps_warmup=3"])


def test_a_guard_reports_although_another_part_is_wrong(base: Path) -> None:
    assert len(problems(base, "threat.eps=8", "train.lr=x")) == 2


# The way back


def with_member(family: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A spec that uses a member where its family stands."""
    chosen = {"name": name, **parameters}
    spec: dict[str, Any] = {
        "name": "s",
        "data": {"name": "digits"},
        "architecture": {"name": "small_cnn"},
        "threat": {"norm": "l2" if "l2" in catalog(family)[name].norms else "linf", "eps": 0.5},
        "defense": {"name": "natural"},
        "train": {"epochs": 100},
        "evaluate": {},
    }
    match family:
        case "datasets":
            spec["data"] = chosen
        case "architectures":
            spec["architecture"] = chosen
        case "defenses":
            spec["defense"] = chosen
            if trains := catalog(family)[name].trains:
                spec["architecture"] = {"name": trains, **catalog("architectures")[trains].smoke}
        case "evaluators":
            spec["evaluate"]["result"] = chosen
        case "optimizers":
            spec["train"]["optimizer"] = chosen
        case "schedules":
            spec["train"]["schedule"] = chosen
        case "attacks":
            spec["evaluate"]["result"] = {"name": "attack", "attack": chosen}
        case "weights" | "averaging":
            spec["defense"][family] = chosen
    return spec


def values(annotation: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a parameter of this annotation accepts, as a spec writes them."""
    family = family_of(annotation)
    if family is not None:
        return members(family, depth + 1)
    if get_origin(annotation) is Annotated:
        kind, *limits = get_args(annotation)
        return _limited(kind, limits)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is list:
        return st.lists(values(get_args(annotation)[0], depth), min_size=1, max_size=2)
    if get_origin(annotation) is tuple:
        return st.lists(values(get_args(annotation)[0], depth), min_size=1, max_size=3)
    if get_args(annotation):
        return st.one_of([values(part, depth) for part in get_args(annotation)])
    if isinstance(annotation, type) and is_dataclass(annotation):
        return mappings(settings_of(annotation), depth)
    simple = {
        bool: st.booleans(),
        int: st.integers(0, 10**9),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(exclude_categories=["C"])),
        type(None): st.none(),
    }
    return simple[annotation]


def _limited(kind: Any, limits: list[Any]) -> st.SearchStrategy[Any]:
    low: Any = next((limit.ge for limit in limits if isinstance(limit, Ge)), None)
    above: Any = next((limit.gt for limit in limits if isinstance(limit, Gt)), None)
    high: Any = next((limit.le for limit in limits if isinstance(limit, Le)), None)
    below: Any = next((limit.lt for limit in limits if isinstance(limit, Lt)), None)
    if kind is int:
        return st.integers(int(low or 0), 10**6)
    if kind is Fraction:
        return st.fractions(0, 1)
    return st.floats(
        low if low is not None else above,
        high if high is not None else below,
        exclude_min=above is not None,
        exclude_max=below is not None,
        allow_nan=False,
        allow_infinity=False,
    )


def mappings(known: Mapping[str, Parameter], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the parameters, and all that have no default."""
    needed = {name: values(p.annotation, depth) for name, p in known.items() if p.default is REQUIRED}
    others = {name: values(p.annotation, depth) for name, p in known.items() if p.default is not REQUIRED}
    return st.fixed_dictionaries(needed, optional=others)


@st.composite
def members(draw: st.DrawFn, family: Family, depth: int = 0) -> dict[str, Any]:
    """A member of a family with some of its parameters, a few levels deep."""
    known = catalog(family.name)
    shallow = [
        name
        for name, member in known.items()
        if not any(
            family_of(part) for p in member.parameters.values() for part in (p.annotation, *get_args(p.annotation))
        )
    ]
    name = draw(st.sampled_from(sorted(known) if depth < 3 else shallow))
    member = known[name]
    beside = settings_of(family.options) if family.options else {}
    replaceable = member.replaceable if depth < 2 else {}
    return {"name": name, **draw(mappings({**member.parameters, **replaceable, **beside}, depth))}


PLACES = {
    "data": members(family_of(settings_of(ExperimentSpec)["data"].annotation) or Family("")),
    "architecture": members(family_of(settings_of(ExperimentSpec)["architecture"].annotation) or Family("")),
    "defense": members(Family("defenses")),
    "threat": values(settings_of(ExperimentSpec)["threat"].annotation),
    "train": values(settings_of(ExperimentSpec)["train"].annotation),
    "evaluate": st.dictionaries(st.sampled_from(["a", "b.c", "d-1"]), members(Family("evaluators")), max_size=2),
    "seed": st.integers(0, 2**70),
}


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(sorted(PLACES)), st.data())
def test_any_spec_is_equal_after_the_way_through_yaml(place: str, data: st.DataObject) -> None:
    value = {**with_member("attacks", "none", {}), place: data.draw(PLACES[place])}
    try:
        spec = ExperimentSpec.check(Document("s", value, {}))
    except SpecError:
        assume(False)
        raise
    again = ExperimentSpec.parse(spec.to_yaml(), "again")
    assert again == spec
    assert again.to_yaml() == spec.to_yaml()
    assert again.digest == spec.digest
    # The unresolved text gives the same spec.
    assert ExperimentSpec.parse(to_yaml(value), "written").digest == spec.digest


# The digest

FULL = """\
name: full
seed: 3
data:
  name: mnist
  root: data
  download: false
  val_size: 50
  train_size: 900
  augment: {crop: 1, cutout: 2}
  mixer: {name: mixup, alpha: 0.5}
  label_smoothing: 0.1
  smoothing_over: others
  extra: {path: more.npz, labels: guessed.npy, share: 0.5, label_smoothing: 0.4}
  workers: 1
architecture: {name: small_cnn, width: 8, hidden: 10}
threat: {norm: l2, eps: 8/255}
defense:
  name: trades
  step_size: 0.1
  weights: {name: awp, gamma: 0.01}
  averaging: {name: ema, decay: 0.9}
train:
  epochs: 10
  lr: 0.1
  optimizer: {name: sgd, momentum: 0.9}
  schedule: {name: piecewise, at: [0.5, 0.75]}
  weight_decay: 5e-4
  grad_clip: 1.0
  eps_warmup: 2
  select: clean
  device: cpu
evaluate:
  clean: {name: clean, examples: 50}
  pgd: {name: attack, attack: {name: pgd, step_size: 0.01}, examples: 70}
claim: {source: somewhere, table: '1', metrics: {clean: 0.9}, hardware: one, note: two, selection: three}
"""
OTHER_MEMBERS: dict[tuple[Any, ...], dict[str, Any]] = {
    ("data",): {"name": "fashion_mnist", "val_size": 50},
    ("data", "mixer"): {"name": "cutmix"},
    ("architecture",): {"name": "preact_resnet18"},
    ("architecture", "preprocess"): {"name": "jpeg"},
    ("defense",): {"name": "pgd_at"},
    ("defense", "weights"): {"name": "none"},
    ("defense", "averaging"): {"name": "none"},
    ("train", "optimizer"): {"name": "adam"},
    ("train", "schedule"): {"name": "cosine"},
    ("evaluate", "clean"): {"name": "autoattack"},
    ("evaluate", "pgd"): {"name": "autoattack"},
    ("evaluate", "pgd", "attack"): {"name": "fgsm"},
}
ELSEWHERE = ("seed", "train.device", "data.root", "data.download", "data.extra.path", "data.extra.labels")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every plain value of a spec with its path; a member is taken as a whole when its name is the value."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield path, value
        return
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, list):
        return [replaced(item, path[1:], new) if i == path[0] else item for i, item in enumerate(value)]
    return {key: replaced(item, path[1:], new) if key == path[0] else item for key, item in value.items()}


def other_values(value: Any) -> list[Any]:
    """Values that differ from this one, one of which its parameter accepts."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        words = ["l1", "zero", "dlr", "best", "none", "bn", "clean", "last", "continue", "average", "bf16", "gelu"]
        return [
            word
            for word in [*words, "train", "random", "two", "se", "cuda", "all", "adversarial", "sine", "both"]
            if word != value
        ] + [True]
    if value is None:
        return [1, 0.5, "a.pt"]
    if isinstance(value, int):
        return [value + 1, value - 1]
    return [float(value) / 2 + 0.1, 0.25]


FULL_SPEC = ExperimentSpec.parse(FULL, "full")
FULL_PLAIN = FULL_SPEC.to_plain()
# Without values that are only valid together with other settings.
PATHS = [path for path, _ in leaves(FULL_PLAIN) if path != ("train", "allow_test_selection")]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_the_digest_depends_on_what_the_experiment_is_and_on_nothing_else(path: tuple[Any, ...]) -> None:
    value = dict(leaves(FULL_PLAIN))[path]
    after = None
    if path[-1] == "name" and len(path) > 1:
        after = ExperimentSpec.check(Document("s", replaced(FULL_PLAIN, path[:-1], OTHER_MEMBERS[path[:-1]]), {}))
    else:
        for other in other_values(value):
            try:
                after = ExperimentSpec.check(Document("s", replaced(FULL_PLAIN, path, other), {}))
                break
            except SpecError:
                continue
    assert after is not None, f"no other value of {path} is known to this test"
    assert after != FULL_SPEC
    is_elsewhere = ".".join(map(str, path)) in ELSEWHERE or path[0] == "claim"
    assert (after.digest == FULL_SPEC.digest) is is_elsewhere


def test_the_digest_does_not_depend_on_the_path_of_an_archive(base: Path) -> None:
    digests = {ExperimentSpec.read(base, [f"data={{name: npz, path: {path}}}"]).digest for path in ("a.npz", "b.npz")}
    assert len(digests) == 1


def test_the_digest_does_not_depend_on_how_a_value_is_written(base: Path) -> None:
    digest = ExperimentSpec.read(base).digest
    same = ["threat.eps=16/510", "train.lr=0.0001", "architecture={name: small_cnn}", "claim=null", "seed=9"]
    for override in same:
        assert ExperimentSpec.read(base, [override]).digest == digest
    assert len(digest) == 8
    assert int(digest, 16) >= 0


def test_an_evaluation_more_or_fewer_is_another_experiment(base: Path) -> None:
    digest = ExperimentSpec.read(base).digest
    assert ExperimentSpec.read(base, ["evaluate.fgsm={name: attack, attack: fgsm}"]).digest != digest
    assert ExperimentSpec.read(base, ["evaluate={}"]).digest != digest


def test_an_override_of_a_text_leaves_quotients_exact(base: Path) -> None:
    spec = ExperimentSpec.read(base, ["threat.eps=8/255", "defense.step_size=2/255"])
    again = ExperimentSpec.parse(override_text(spec.to_yaml(), ["seed=3"], "printed"), "printed")
    assert again.threat.eps == Fraction(8, 255)
    assert again.seed == 3
    assert again.defense == spec.defense
    raw = override_text("threat: {eps: 8/255}\nlist: [1/3]\n", ["seed=3"], "raw")
    assert "8/255" in raw
    assert "1/3" in raw
