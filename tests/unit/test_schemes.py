"""Models by name: names, downloads, and messages without network access."""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from servers import file_server, hub_server
from torch import nn

import robustcli
from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.errors import RobustCliError
from robustcli.models.architecture import Architecture
from robustcli.models.find import find_model, find_source
from robustcli.models.schemes import NamedFile, forms, matching
from robustcli.models.schemes.robustbench import Entry, entries
from robustcli.models.weights_file import Weights
from robustcli.models.weights_fit import filled
from robustcli.registry.registry import instantiate
from robustcli.registry.types import Family
from robustcli.specs.check import checked
from robustcli.specs.settings import ArchitectureOptions
from robustcli.store.results import ModelRequest

NAME = "cifar10/corruptions/Hendrycks2020AugMix_WRN"
ID = "1wy7gSRsUZzCzj8QhmTbcnwmES_2kkNph"
SHAPES = {"cifar10": ImageShape(3, 32, 32, 10), "cifar100": ImageShape(3, 32, 32, 100)}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES.get("wide_resnet")(SHAPES["cifar10"], depth=40, widen=2).eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "robustbench" / f"{NAME}.pt"


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ROBUST_ROBUSTBENCH_URL", f"{address}/{{id}}")


def test_every_scheme_documents_its_names() -> None:
    assert forms() == ["hf:ORG/REPO[/FILE]", "robustbench:NAME", "timm:NAME", "torchvision:NAME"]


def test_a_pattern_stands_for_all_models_of_one_threat_model() -> None:
    full = {entry.full_name for entry in entries()}
    found = matching("robustbench:cifar10/L2/*")
    assert set(found) == {f"robustbench:{name}" for name in full if name.startswith("cifar10/L2/")}
    assert len(found) == len(set(found)) > 3
    assert matching(f"robustbench:{NAME[:-1]}?") == [f"robustbench:{NAME}"]
    assert matching("robustbench:Salman2020Do_R1?") == ["robustbench:imagenet/Linf/Salman2020Do_R18"]
    # Everything else is a name or a path.
    for text in ("robustbench:Carmon2019Unlabeled", "runs/*", "model.pt"):
        assert matching(text) == [text]
    with pytest.raises(RobustCliError, match=r"several data sets or threat models; write one of .*cifar10/Linf/\*'"):
        matching("robustbench:*")
    with pytest.raises(RobustCliError, match="matches no model; write one of 'robustbench:cifar10/L2/"):
        matching("robustbench:Nobody*")
    with pytest.raises(RobustCliError, match=r"timm:res\*: only names of robustbench"):
        matching("timm:res*")


def test_names_of_the_table_are_unique_and_complete() -> None:
    known = entries()
    assert max(Counter(entry.full_name for entry in known).values()) == 1
    assert {entry.full_name.rpartition("/")[0] for entry in known} >= {"cifar10/Linf", "cifar10/L2", "imagenet/Linf"}
    for entry in known:
        assert len(entry.google_drive) == 33, entry.name
        assert entry.threat in ("linf 8/255", "linf 4/255", "l2 0.5", "corruptions")
        assert len(entry.mean.split()) == len(entry.std.split())
        assert all(0 <= float(number) <= 1 for number in (*entry.mean.split(), *entry.std.split()))


DIFFERENT = list({(entry.dataset, entry.architecture): entry for entry in entries()}.values())


@pytest.mark.parametrize("entry", DIFFERENT, ids=lambda entry: entry.full_name)
@pytest.mark.slow
def test_every_architecture_of_the_table_can_be_built(entry: Entry) -> None:
    family = Family("architectures", ArchitectureOptions)
    chosen = checked(lambda checker: checker.chosen(family, entry.settings, ("architecture",)), "the table")
    with torch.device("meta"):
        built = instantiate(chosen, SHAPES.get(entry.dataset, ImageShape(3, 224, 224, 1000)))
    assert sum(parameter.numel() for parameter in built.parameters()) > 100_000


def test_a_model_is_downloaded_once_with_its_normalization(
    cache: Path, network: nn.Module, weights: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network((x - 0.5) / 0.5)
    with file_server({ID: weights}) as (address, asked):
        use(monkeypatch, address)
        for _ in range(2):
            with torch.no_grad():
                torch.testing.assert_close(robustcli.load(f"robustbench:{NAME}")(x), expected)
        assert asked == [ID]
    assert capsys.readouterr().err.count("downloading") == 1
    # From the cache, without the server.
    robustcli.load(f"robustbench:{NAME}")
    digest, name = cache.with_name(f"{cache.name}.sha256").read_text().split()
    assert (len(digest), name) == (64, cache.name)
    cache.write_bytes(weights + b" ")
    with pytest.raises(RobustCliError, match="has changed since it was downloaded"):
        robustcli.load(f"robustbench:{NAME}")


def test_a_name_sets_the_normalization_missing_from_its_file(tmp_path: Path) -> None:
    family = Family("architectures", ArchitectureOptions)
    chosen = checked(lambda checker: checker.chosen(family, "small_cnn", ("architecture",)), "the test")
    built = ARCHITECTURES.get("small_cnn")(SHAPES["cifar10"])
    about = NamedFile(path=tmp_path, title="a name", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    state = dict(built.state_dict())
    found = Architecture(chosen, Weights(tmp_path, state), about).load(SHAPES["cifar10"], torch.device("cpu"))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    state |= {"mu": torch.full((3, 1, 1), 0.7), "sigma": torch.full((3, 1, 1), 0.8)}
    found = Architecture(chosen, Weights(tmp_path, state), about).load(SHAPES["cifar10"], torch.device("cpu"))
    assert (found.mean, found.std) == (pytest.approx((0.7,) * 3), pytest.approx((0.8,) * 3))


def test_a_saved_normalization_of_bytes_becomes_one_of_unit_pixels(tmp_path: Path) -> None:
    weights = nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()
    normalization = {"mean": torch.tensor([127.5, 51.0, 0.5]), "std": torch.tensor([51.0, 25.5, 255.0])}
    for state in (
        {**weights, **normalization},
        {f"model.{name}": one for name, one in weights.items()} | normalization,
    ):
        found = filled(nn.Sequential(nn.Conv2d(3, 4, 3)), Weights(tmp_path / "w.pt", state), "a network")
        assert found.mean == pytest.approx((0.5, 0.2, 0.5 / 255))
        assert found.std == pytest.approx((0.2, 0.1, 1.0))
        assert any("pixels in 0..255" in note for note in found.notes)


@pytest.mark.parametrize(
    ("body", "message"),
    [(None, "answered 404"), (b"<!DOCTYPE html><p>Quota exceeded", "an HTML or XML page"), (b"", "empty")],
    ids=["404", "page", "empty"],
)
def test_an_answer_without_weights_is_one_clear_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch, body: bytes | None, message: str
) -> None:
    with file_server({} if body is None else {ID: body}) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(RobustCliError, match=message) as caught:
            robustcli.load(f"robustbench:{NAME}")
    assert str(cache) in str(caught.value)
    assert not cache.exists()


def test_without_network_the_message_names_the_file_to_copy(
    cache: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_server({}) as (address, _):
        pass
    use(monkeypatch, address)
    with pytest.raises(RobustCliError, match="without network access, download it elsewhere and copy it to") as caught:
        robustcli.load(f"robustbench:{NAME}")
    assert f"{address}/{ID}" in str(caught.value)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(weights)
    robustcli.load(f"robustbench:{NAME}")


def test_a_name_brings_threat_images_and_architecture(tmp_path: Path, weights: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(weights)
    name = "robustbench:Rebuffi2021Fixing_R18_cutmix_ddpm"
    with pytest.raises(RobustCliError, match="does not fit"):
        robustcli.load(name, weights=tmp_path / "w.pt")
    model = find_model(ModelRequest(text=name, weights=str(tmp_path / "w.pt"), overrides=("data.root=elsewhere",)))
    defaults = model.defaults
    assert defaults.threat is not None
    assert (defaults.threat.norm, str(defaults.threat.eps)) == ("l2", "1/2")
    assert (defaults.data.name, defaults.data.parameters["root"]) == ("cifar10", "elsewhere")
    assert defaults.name == "robustbench:cifar10/L2/Rebuffi2021Fixing_R18_cutmix_ddpm"
    own = ModelRequest(text=f"robustbench:{NAME}", weights=str(tmp_path / "w.pt"))
    assert find_model(own).defaults.threat is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Rice2020Overfitting", "3 models have this name; write one of robustbench:cifar10/L2/Rice2020Overfitting"),
        ("Carmon2019Unlabelled", "did you mean 'Carmon2019Unlabeled'"),
        ("cifar10/Linf/Nobody", "there is no such model"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        find_source(ModelRequest(text=f"robustbench:{name}"))


@pytest.mark.parametrize("name", ["org", "org/", "/repo", "org//file"])
def test_a_name_of_the_hub_needs_a_repository(name: str) -> None:
    with pytest.raises(RobustCliError, match="write hf:ORG/REPO"):
        find_source(ModelRequest(text=f"hf:{name}"))


HUB = """
import json, sys
import robustcli
from robustcli.errors import RobustCliError
found = {}
for name in sys.argv[1:]:
    try:
        how = dict(architecture="small_cnn", mean=0, std=1) if "safetensors" in name else {}
        found[name] = type(robustcli.load(name, image=(3, 16, 16), **how)).__name__
    except RobustCliError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_files_of_the_hub_are_downloaded_into_its_cache(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    save_file = pytest.importorskip("safetensors.torch").save_file
    network = ARCHITECTURES.get("small_cnn")(ImageShape(3, 16, 16, 10))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(network), tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    files = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "script.pt")}
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def loaded(*names: str, **variables: str) -> dict[str, str]:
        command = [sys.executable, "-W", "ignore", "-c", HUB, *names]
        done = subprocess.run(
            command, env={**environment, **variables}, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    names = ("hf:org/net/model.safetensors", "hf:org/net/script.pt", "hf:org/net/scrpt.pt", "hf:org/gone", "hf:org/odd")
    with hub_server({"org/net": files, "org/odd": {"deep/epoch-3.pt": b"x"}}) as address:
        found = loaded(*names, HF_ENDPOINT=address)
        assert found[names[0]] == found[names[1]] == "ExternalNetwork"
        assert "has no such file; did you mean 'script.pt'" in found[names[2]]
        assert "there is no such repository or revision" in found[names[3]]
        assert "has none of the usual files" in found[names[4]]
        assert "deep/epoch-3.pt" in found[names[4]]
    # The server is gone: files in the cache are used, others are an error.
    found = loaded(names[1], "hf:org/net/other.pt", "hf:org/unseen", HF_ENDPOINT=address)
    assert found[names[1]] == "ExternalNetwork"
    assert "not in the cache, and the Hub cannot be reached" in found["hf:org/net/other.pt"]
    assert "not in the cache, and the Hub cannot be reached" in found["hf:org/unseen"]
