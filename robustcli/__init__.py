"""robust: adversarial training and evaluation from one YAML spec."""

__version__ = "0.1.0"
