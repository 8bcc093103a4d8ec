"""Gradient alignment against a number measured with other code."""

from fractions import Fraction

import pytest
import torch
from sine_networks import SineConv, labeled

from robustcli.diagnostics.gradient_alignment import GradientAlignment
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def test_alignment_of_the_sine_network() -> None:
    model, x, y = labeled(SineConv())
    threat = ThreatModel("linf", Fraction(2, 1000))
    found = GradientAlignment(points=20)(model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))
    # Measured with other noise, one point for each of 64 images; the tolerance covers the noise.
    assert found["cosine"]["mean"] == pytest.approx(0.99116, abs=0.003)
