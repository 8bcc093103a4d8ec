"""`robust diagnose`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Robust

from robustcli.registry.catalog import catalog
from robustcli.reports import picture
from robustcli.statistics import clopper_pearson
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder

FEW = ("--examples", 30)


def found(robust: Robust, *words: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(robust("diagnose", *words, *FEW, "--json", "--quiet").require(0).out)
    return value


def test_requested_diagnostics_are_computed_and_stored(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "found" / "all.json"
    words = ("--with", "fosc", "--with", "eps_curve", "--with", "fosc")
    said = robust("diagnose", trained.best, *words, *FEW, "--out", out, "eps_curve.radii=[0, 8/255]").require(0)
    stored = read_json(out)
    assert list(stored["diagnostics"]) == ["fosc", "eps_curve"]
    assert stored["threat"] == {"norm": "linf", "eps": "0.1"}
    assert (stored["examples"], stored["seed"], stored["checkpoint"]) == (30, 0, "best.pt")
    curve = stored["diagnostics"]["eps_curve"]
    assert [row["eps"] for row in curve["found"]["curve"]] == [0, pytest.approx(8 / 255)]
    assert curve["settings"]["kind"] == "EpsCurve"
    assert (curve["settings"]["attack"]["kind"], curve["settings"]["attack"]["steps"]) == ("Pgd", 20)
    for text in ("linf 0.1, 30 images", "fosc", "adversarial", "median", "eps_curve", "accuracy %"):
        assert text in said.out
    assert said.err.splitlines() == ["diagnosing fosc ...", "diagnosing eps_curve ..."]
    row = next(line for line in said.out.splitlines() if " 0.03137 " in line)
    assert f"{100 * curve['found']['curve'][1]['accuracy']:.1f}" in row
    again = found(robust, trained.best, *words[:4], "eps_curve.radii=[0, 8/255]")
    for name in ("fosc", "eps_curve"):
        assert again["diagnostics"][name]["found"] == stored["diagnostics"][name]["found"]


def test_a_curve_has_the_accuracy_of_an_evaluation(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    attack = "eps_curve.attack={name: pgd, steps: 3, keep: fooled}"
    value = found(robust, trained.best, "--with", "eps_curve", attack, "eps_curve.radii=[0.1]")
    said = robust("eval", trained.best, "--attack", "pgd", "--steps", 3, *FEW, "--json", "--quiet", "--store", tmp_path)
    evaluated = json.loads(said.require(0).out)["evaluations"]["pgd"]
    (point,) = value["diagnostics"]["eps_curve"]["found"]["curve"]
    assert (point["correct"], point["accuracy"]) == (evaluated["correct"], evaluated["accuracy"])


def test_threat_seed_and_options_are_obeyed(robust: Robust, trained: RunFolder) -> None:
    usual = found(robust, trained.best, "--with", "gradient_alignment")
    for words in (("--eps", "0.3"), ("--norm", "l2", "--eps", 0.5), ("--seed", 5), ("gradient_alignment.points=3",)):
        other = found(robust, trained.best, "--with", "gradient_alignment", *words)
        assert other["diagnostics"] != usual["diagnostics"], words
    other = found(robust, trained.best, "--with", "gradient_alignment", "--norm", "l2", "--eps", 0.5)
    assert other["threat"]["norm"] == "l2"


def test_a_radius_of_one_norm_is_not_used_for_another(robust: Robust, trained: RunFolder) -> None:
    for command in (("diagnose", "--with", "gradient_alignment"), ("eval", "--attack", "pgd")):
        name, *rest = command
        robust(name, trained.best, *rest, *FEW, "--norm", "l2").require(2, "--norm l2: write --eps too", "for linf")


def test_external_networks_need_a_threat_and_a_normalization(
    robust: Robust, trained: RunFolder, tmp_path: Path
) -> None:
    checkpoint = NetworkCheckpoint.read(trained.best)
    weights = tmp_path / "weights.pt"
    body = {key.removeprefix("body."): value for key, value in checkpoint.weights.items() if key.startswith("body.")}
    torch.save(body, weights)
    small = ("--architecture", "small_cnn", "architecture.width=4", "architecture.hidden=16", "--data", "digits")
    robust("diagnose", weights, *small, "--with", "fosc").require(2, "--norm and --eps: weights.pt has no threat model")
    robust("diagnose", weights, *small, "--with", "fosc", "--norm", "linf", "--eps", "0.1").require(
        2, "--mean 0 --std 1"
    )
    scale = ("--mean", checkpoint.mean[0], "--std", checkpoint.std[0])
    value = found(robust, weights, *small, "--with", "fosc", "--norm", "linf", "--eps", "0.1", *scale)
    own = found(robust, trained.best, "--with", "fosc")
    assert value["diagnostics"]["fosc"]["found"] == own["diagnostics"]["fosc"]["found"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), f"--with: names no diagnostic; expected one or more of {', '.join(catalog('diagnostics'))}"),
        (("--with", "fosk"), "--with: there is no diagnostic 'fosk'; did you mean 'fosc'?"),
        (("--with", "fosc", "fosc.bins=3"), "fosc.bins: unknown parameter of 'fosc' in diagnostics"),
        (("--with", "fosc", "eps_curve.radii=[0]"), "override 'eps_curve.radii=[0]': add --with eps_curve"),
        (("--with", "eps_curve", "eps_curve.radii=[2]"), "threat.eps: 2 is larger than the pixel range"),
        (("--with", "fosc", "--examples", 10**6), "1000000 test images requested; there are only 360"),
        (("--with", "fosc", "--out", "."), "--out: .: is a folder"),
        (("--with", "fosc", "--picture", "curve.jpg"), "its name must end in one of .png, .pdf, .svg"),
    ],
)
def test_mistakes_of_the_user_are_named(
    robust: Robust, trained: RunFolder, words: tuple[object, ...], told: str
) -> None:
    robust("diagnose", trained.best, *words).require(2, told)


def test_results_are_kept_if_a_later_diagnostic_fails(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    names = ("--with", "fosc", "--with", "eps_curve", "eps_curve.radii=[2]")
    for words in ((), ("--json",)):
        said = robust("diagnose", trained.best, *names, *FEW, *words, "--out", tmp_path / "found.json")
        said.require(2, "2 is larger than the pixel range")
        assert "fosc" in said.out
    assert [*json.loads((tmp_path / "found.json").read_text())["diagnostics"]] == ["fosc"]
    assert [*json.loads(said.out)["diagnostics"]] == ["fosc"]


def test_without_matplotlib_a_picture_is_refused_before_anything_else(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda _name: None)
    told = "--picture: needs matplotlib, which is not installed: pip install matplotlib"
    robust("diagnose", "no_such.pt", "--with", "fosc", "--picture", "a.png").require(2, told)


@pytest.mark.slow
def test_curves_and_surfaces_are_drawn(robust: Robust, trained: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    drawn = tmp_path / "drawn" / "both.png"
    names = ("--with", "eps_curve", "--with", "input_surface", "--with", "weight_surface")
    robust("diagnose", trained.best, *names, *FEW, "--picture", drawn, "input_surface.half=2").require(0)
    with Image.open(drawn) as image:
        assert image.width > image.height
        # Text, axes and lines, not one even color.
        assert len(set(image.convert("L").resize((64, 32)).tobytes())) > 10
    said = robust("diagnose", trained.best, "--with", "fosc", *FEW, "--picture", drawn)
    said.require(2, "no curve or surface to draw", "median")


LONG = f"runs/{'a_rather_long_name_of_an_experiment/' * 4}{'x' * 90}/checkpoints/best_$of$_all.pt, linf 8/255"
ROWS = [{"eps": 0.0, "accuracy": 0.9, "correct": 18}, {"eps": 0.1, "accuracy": 0.0, "correct": 0}]
SURFACE = {"uphill": [-1, 0, 1], "aside": [-1, 0, 1], "loss": [[0.1] * 3] * 3, "accuracy": [[0.5] * 3] * 3}
FOUND: dict[str, dict[str, Any]] = {
    "eps_curve": {"total": 20, "curve": ROWS},
    "weight_surface": {"images": 20, "curve": [{"alpha": -1.0, "loss": 2.0}, {"alpha": 1.0, "loss": 3.0}]},
    "input_surface": {"images": 20, "surface": SURFACE},
}


@pytest.mark.parametrize("names", [["eps_curve"], list(FOUND)])
def test_a_long_title_is_cut_into_lines_that_fit(names: list[str]) -> None:
    pytest.importorskip("matplotlib")
    figure = picture.drawn(LONG, {name: FOUND[name] for name in names}, "linf")
    figure.canvas.draw()
    title = figure.get_suptitle()
    assert title.replace("\n", "") == LONG
    (text,) = (text for text in figure.texts if text.get_text() == title)
    extent, whole = text.get_window_extent(), figure.bbox
    assert whole.x0 <= extent.x0 < extent.x1 <= whole.x1
    assert whole.y0 <= extent.y0 < extent.y1 <= whole.y1
    assert extent.y0 >= max(axes.get_tightbbox().y1 for axes in figure.axes), "the title lies over a panel"


def test_axes_say_what_they_show_and_in_which_unit() -> None:
    pytest.importorskip("matplotlib")
    figure = picture.drawn("title", FOUND, "l2")
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    aside, uphill = (f"{way} (multiples of eps in l2)" for way in ("in a random direction", "along the gradient"))
    assert labels == [
        ("radius eps in l2 (pixels in [0, 1])", "accuracy (%)"),
        ("alpha (lengths of the filters)", "mean cross-entropy (nats)"),
        (aside, uphill),
        (aside, uphill),
        ("", "mean cross-entropy (nats)"),
        ("", "accuracy (%)"),
    ]
    assert figure.axes[3].collections[0].get_array().max() == 50


def test_an_accuracy_has_the_band_of_its_exact_interval() -> None:
    pytest.importorskip("matplotlib")
    figure = picture.drawn("title", FOUND, "linf")
    curve, loss = figure.axes[:2]
    (band,) = curve.collections
    drawn = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    for row in ROWS:
        ends = clopper_pearson(int(row["correct"]), 20)
        assert {(row["eps"], round(100 * end, 6)) for end in ends} <= drawn
    assert [text.get_text() for text in curve.get_legend().get_texts()] == ["accuracy", "95 % interval, 20 images"]
    assert not loss.collections, "a loss has no binomial interval"
