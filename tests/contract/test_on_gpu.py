"""Every member on a simulated GPU gives the CPU's numbers, on one device, without waiting inside an update."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from members import names_of, norms_known_to, smoke
from simulated_gpu import CUDA, GpuTensor, SimulatedGpu, simulated_gpu
from torch import Tensor, nn

from robustcli.contracts.attacks import RADII
from robustcli.contracts.defenses import STEPS_PER_EPOCH, THREAT, network_for
from robustcli.contracts.diagnostics import numbers_in
from robustcli.contracts.networks import conv_net, drawn_from, gated_net, images, labels
from robustcli.data.targets import Labels
from robustcli.errors import RobustCliError
from robustcli.evaluation.gather import gather
from robustcli.optimization.progress import Progress
from robustcli.threat.noise import IndexedNoise, StreamNoise, derive
from robustcli.threat.threat import ThreatModel

CPU = torch.device("cpu")


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu]:
    with simulated_gpu() as found:
        yield found


def on_host(value: Any) -> Any:
    return value.host.clone() if isinstance(value, GpuTensor) else value.detach().clone()


# The simulation itself


def test_tensors_of_two_devices_do_not_meet(gpu: SimulatedGpu) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert (there.device, there.is_cuda, here.is_cuda) == (CUDA, True, False)
    with pytest.raises(RuntimeError, match="on the same device"):
        here + there
    with pytest.raises(RuntimeError, match="on the same device"):
        nn.Linear(3, 3)(there)
    # Tensors without dimensions are allowed.
    assert on_host(there * torch.tensor(2.0)).tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())


def test_waits_are_counted(gpu: SimulatedGpu) -> None:
    values = torch.arange(4.0, device="cuda")
    twice = values + values
    assert gpu.waits == {}
    for asks in (
        lambda: twice.sum().item(),
        lambda: twice.cpu(),
        lambda: twice.tolist(),
        lambda: twice[twice > 1],
        lambda: torch.nonzero(twice),
        lambda: bool((twice > 1).any()),
        lambda: torch.ones(3).to("cuda"),
        torch.cuda.synchronize,
    ):
        before = sum(gpu.waits.values())
        asks()
        assert sum(gpu.waits.values()) > before
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        twice.sum().item()


def test_gradients_are_those_of_the_cpu(gpu: SimulatedGpu) -> None:
    network = conv_net()
    x, y = images(4), labels(4)
    nn.functional.cross_entropy(network(x), y).backward()
    expected = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    network.to("cuda")
    nn.functional.cross_entropy(network(x.to("cuda")), y.to("cuda")).backward()
    found = [on_host(parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
    assert all(map(torch.equal, found, expected))


# Members


def trained(name: str, device: torch.device) -> dict[str, Tensor]:
    """Weights after three updates; waiting in the third one is an error."""
    defense = smoke("defenses", name)
    model = network_for(defense, dropout=0.1).train().to(device)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    noise = StreamNoise.on(device)
    step = defense.start(model, optimizer, noise)
    for update in range(3):
        x, y = images(8, seed=update).to(device), labels(8, seed=update).to(device)
        torch.cuda.set_sync_debug_mode("error" if update == 2 else "default")
        noise.reseed(0, "attack", update)
        with drawn_from(derive(0, "network", update)):
            step(x, Labels(y, y), THREAT, Progress(update, STEPS_PER_EPOCH, 10))
        torch.cuda.set_sync_debug_mode("default")
    return {key: on_host(value) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "dsara" else name for name in names_of("defenses")]
)
def test_a_defense_trains_as_on_the_cpu_and_does_not_wait(name: str, gpu: SimulatedGpu) -> None:
    there = trained(name, CUDA)
    here = trained(name, CPU)
    assert list(there) == list(here)
    different = [key for key in here if not torch.allclose(here[key], there[key], rtol=1e-5, atol=1e-6)]
    assert not different


@pytest.mark.parametrize("name", names_of("attacks"))
def test_an_attack_finds_what_it_finds_on_the_cpu(name: str, gpu: SimulatedGpu) -> None:
    attack = smoke("attacks", name)
    norm = norms_known_to(name)[0]
    found = []
    for device in (CUDA, CPU):
        model = (gated_net() if name == "joint_pgd" else conv_net()).eval().to(device)
        x, y = images(6).to(device), labels(6).to(device)
        rng = IndexedNoise(7, torch.arange(6, device=device))
        found.append(on_host(attack(model, x, y, ThreatModel(norm, RADII[norm]), rng)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of("evaluators"))
def test_an_evaluator_finds_what_it_finds_on_the_cpu(name: str, gpu: SimulatedGpu) -> None:
    if name == "transfer_attack":
        pytest.skip("needs a checkpoint; its attack is tested above")
    # Its attacks are tested above and take long.
    settings = {"attacks": ["apgd-ce"]} if name == "autoattack" else {}
    evaluator = smoke("evaluators", name, **settings)
    found = []
    for device in (CUDA, CPU):
        model, x = conv_net().eval().to(device), images(7).to(device)
        with torch.no_grad():
            y = model(x).argmax(1)
        rng = IndexedNoise(0, torch.arange(7, device=device))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found.append(gather(evaluator, model, x, y, ThreatModel("linf", RADII["linf"] / 4), rng).survives)
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of("diagnostics"))
def test_a_diagnostic_finds_what_it_finds_on_the_cpu(name: str, gpu: SimulatedGpu) -> None:
    found = []
    for device in (CUDA, CPU):
        model, x, y = conv_net().eval().to(device), images(6).to(device), labels(6).to(device)
        rng = IndexedNoise(0, torch.arange(6, device=device))
        try:
            found.append(list(numbers_in(smoke("diagnostics", name)(model, x, y, THREAT, rng))))
        except RobustCliError as refusal:
            found.append([str(refusal)])
    assert found[0] == pytest.approx(found[1], rel=1e-4) if isinstance(found[1][0], float) else found[0] == found[1]
