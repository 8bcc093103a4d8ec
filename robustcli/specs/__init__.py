"""A YAML file -> checked choices, every problem at once. Nothing here imports torch."""
