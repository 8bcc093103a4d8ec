"""Certified lower bounds in the output of `robust eval`."""

from shell import Robust

from robustcli.store.runs import RunFolder


def test_the_table_shows_both_bounds_below_each_other(robust: Robust, trained: RunFolder) -> None:
    found = robust("eval", trained.path, "--attack", "interval_bounds", "--eps", "0.001", "-n", 20, "-q").require(0)
    rows = [line.split() for line in found.out.splitlines()]
    (upper,) = (row for row in rows if row[:1] == ["interval_bounds"])
    (lower,) = (row for row in rows if row[:1] == ["certified"])
    assert float(lower[1]) <= float(upper[4])
    assert lower[-2:] == ["lower", "bound"]
    robust("verify", found.out.splitlines()[-1].removeprefix("stored in ")).require(0)
