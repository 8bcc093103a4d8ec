"""Optimizers. A member takes parameter groups and the learning rate first."""

from robustcli.registry.registry import Registry

OPTIMIZERS = Registry("optimizers")
