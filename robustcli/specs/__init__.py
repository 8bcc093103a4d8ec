"""Specs: YAML files, checked with every problem reported at once. Nothing here imports torch."""
