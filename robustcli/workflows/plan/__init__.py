"""The cost of a spec, estimated from a few real updates and evaluation batches."""
