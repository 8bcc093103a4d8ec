"""Devices, precision, compilation, memory and signals."""
