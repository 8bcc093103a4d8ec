"""Noise depends only on its stated inputs and has the right distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustcli.threat.noise import IndexedNoise, Noise, StreamNoise, derive

COUNT = 12


def like(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(count, 3, 4, 5, dtype=dtype)


def indexed(seed: int = 0, count: int = COUNT) -> IndexedNoise:
    return IndexedNoise(seed, torch.arange(count))


def three_draws(noise: Noise, count: int) -> Tensor:
    return torch.stack([noise.uniform(like(count)), noise.normal(like(count)), noise.uniform(like(count))])


@given(st.integers(0, 2**62), st.permutations(range(COUNT)), st.integers(1, COUNT))
def test_example_sees_the_same_noise_in_every_batch(seed: int, order: list[int], size: int) -> None:
    whole = three_draws(indexed(seed).split("attack"), COUNT)
    for part in torch.tensor(order).split(size):
        drawn = three_draws(indexed(seed).rows(part).split("attack"), len(part))
        assert torch.equal(drawn, whole[:, part])
        drawn = three_draws(IndexedNoise(seed, part).split("attack"), len(part))
        assert torch.equal(drawn, whole[:, part])


@given(st.sets(st.integers(0, COUNT - 1), min_size=1))
def test_rows_go_on_where_the_batch_stands(rows: set[int]) -> None:
    keep = torch.zeros(COUNT, dtype=torch.bool)
    keep[list(rows)] = True
    batch, apart = indexed(), indexed()
    batch.uniform(like(COUNT))
    apart.uniform(like(COUNT))
    by_mask, by_index = apart.rows(keep), apart.rows(keep.nonzero().flatten())
    expected = batch.uniform(like(COUNT))[keep]
    assert torch.equal(by_mask.uniform(like(len(rows))), expected)
    assert torch.equal(by_index.uniform(like(len(rows))), expected)


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_no_examples_have_no_noise(kind: str) -> None:
    noise = indexed(count=0) if kind == "indexed" else StreamNoise.on(torch.device("cpu")).reseed(0)
    assert noise.uniform(like(0)).shape == noise.normal(like(0)).shape == (0, 3, 4, 5)


def test_splitting_does_not_disturb_the_source() -> None:
    one, other = indexed(), indexed()
    other.split("restart 0").uniform(like(COUNT))
    assert torch.equal(one.uniform(like(COUNT)), other.uniform(like(COUNT)))


def test_every_input_of_a_seed_changes_the_draws() -> None:
    noise = indexed()
    draws = [
        noise.uniform(like(COUNT)),
        noise.uniform(like(COUNT)),
        indexed(seed=1).uniform(like(COUNT)),
        indexed().split("a").uniform(like(COUNT)),
        indexed().split("b").uniform(like(COUNT)),
        indexed().split("a").split("b").uniform(like(COUNT)),
        indexed().split("b").split("a").uniform(like(COUNT)),
        IndexedNoise(0, torch.arange(COUNT) + COUNT).uniform(like(COUNT)),
    ]
    rows = torch.cat([draw.flatten(1) for draw in draws])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    # All draws differ and are uncorrelated.
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.65


def test_channels_last_and_double_precision_see_the_same_numbers() -> None:
    stream = StreamNoise.on(torch.device("cpu"))
    for draw in ("uniform", "normal"):
        plain = getattr(indexed(), draw)(like(COUNT))
        last = getattr(indexed(), draw)(like(COUNT).contiguous(memory_format=torch.channels_last))
        assert torch.equal(plain, last)
        double = getattr(indexed(), draw)(like(COUNT, torch.float64))
        assert double.dtype == torch.float64
        assert torch.allclose(double.float(), plain, atol=1e-5)
        plain = getattr(stream.reseed(0), draw)(like(COUNT))
        last = getattr(stream.reseed(0), draw)(like(COUNT).contiguous(memory_format=torch.channels_last))
        assert torch.equal(plain, last)


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_uniform_numbers_are_uniform(kind: str) -> None:
    count = 4000
    source: Noise = indexed(count=count) if kind == "indexed" else StreamNoise.on(torch.device("cpu")).reseed(0)
    drawn = source.uniform(like(count)).double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    n = drawn.numel()
    # Five standard errors.
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / n))
    assert drawn.var().item() == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / n))
    counts = torch.histc(drawn, bins=64, min=0, max=1)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * math.sqrt(2 * 63)
    # Neighboring pixels and neighboring examples are uncorrelated.
    for one, other in ((drawn[..., 1:], drawn[..., :-1]), (drawn[1:], drawn[:-1])):
        assert ((one - 0.5) * (other - 0.5)).mean().abs() < 5 / 12 / math.sqrt(one.numel())


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_normal_numbers_are_normal(kind: str) -> None:
    count = 4000
    source: Noise = indexed(count=count) if kind == "indexed" else StreamNoise.on(torch.device("cpu")).reseed(0)
    drawn = source.normal(like(count)).double().flatten()
    n = len(drawn)
    assert torch.isfinite(drawn).all()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert drawn.pow(power).mean().item() == pytest.approx(moment, abs=5 * math.sqrt(spread / n))
    even = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    reached = torch.special.ndtr(drawn.sort().values)
    assert (reached - even).abs().max() < 1.95 / math.sqrt(n)


def test_stream_begins_anew_when_reseeded() -> None:
    stream = StreamNoise.on(torch.device("cpu"))
    first = three_draws(stream.reseed(5, "attack", 3), COUNT)
    three_draws(stream, COUNT)
    assert torch.equal(three_draws(stream.reseed(5, "attack", 3), COUNT), first)
    assert not torch.equal(three_draws(stream.reseed(5, "attack", 4), COUNT), first)
    assert not torch.equal(three_draws(stream.reseed(6, "attack", 3), COUNT), first)


keys = st.lists(st.one_of(st.text(max_size=4), st.integers(-3, 3)), max_size=3).map(tuple)


@pytest.mark.slow
@given(st.integers(0, 3), keys, st.integers(0, 3), keys)
def test_derived_seeds_differ_when_anything_does(
    seed: int, first: tuple[str | int, ...], other_seed: int, other: tuple[str | int, ...]
) -> None:
    one, two = derive(seed, *first), derive(other_seed, *other)
    assert 0 <= one < 2**63
    assert (one == two) == ((seed, first) == (other_seed, other))


def test_derived_seeds_are_pinned() -> None:
    """A change here changes every published number and must be intended."""
    assert derive(0) == 6173263957902241719
    assert derive(7, "attack", 3) == 8654841207828538170
