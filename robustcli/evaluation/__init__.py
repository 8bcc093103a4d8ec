"""Evaluations: run attacks, confirm what they find, and check that the number can be trusted."""
