"""Stored results of `robust bench`, one file per benchmark: benchmarks return these models, and tables read them.

Keys of older files that no table shows have a default here.
"""
