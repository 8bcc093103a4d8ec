"""The end of messages about unknown names."""

from robustcli.errors import suggest


def test_a_short_list_is_shown_whole() -> None:
    assert suggest("widht", ["width", "depth"]) == "; did you mean 'width'? (known: depth, width)"
    assert suggest("zzz", ["width", "depth"]) == " (known: depth, width)"
    assert suggest("zzz", []) == " (known: none)"


def test_initials_are_near() -> None:
    assert suggest("learning_rate", ["lr", "epochs"]) == "; did you mean 'lr'? (known: epochs, lr)"


def test_a_name_of_several_registries_is_listed_once() -> None:
    assert suggest("x", ["none", "none"]) == " (known: none)"


def test_of_a_long_list_the_five_nearest_are_shown() -> None:
    names = [f"resnet{number}" for number in range(18, 40)] + ["trades", "mart"]
    text = suggest("resnt18", names)
    assert text.startswith("; did you mean 'resnet18'? (nearest of 24: resnet18, ")
    assert text.count(",") == 4
    assert "trades" not in text
    assert "did you mean" not in suggest("qqqq", names)


def test_case_and_hyphens_do_not_matter() -> None:
    names = ["fw_at", "fat", "pgd_at", "trades"]
    for found in ("PGD_AT", "pgd-at", "Pgd-At"):
        assert suggest(found, names).startswith("; did you mean 'pgd_at'?")


def test_usual_names_of_the_field_are_near() -> None:
    assert suggest("AA", ["attack", "autoattack"]).startswith("; did you mean 'autoattack'?")
    assert "did you mean" not in suggest("aa", ["trades", "mart"])
