"""Clocks, pass counters, memory and machine facts for `robust bench`, `robust plan` and sweeps."""
