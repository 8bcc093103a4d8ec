"""Clocks, pass counters and machine facts that `robust bench`, `robust plan` and sweeps share."""
