"""Geometry: threat models, projections and the noise that attacks draw."""
