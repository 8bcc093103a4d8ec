"""Promises of the members of each family, as functions that fail where a member breaks one.

`robust check-member NAME` and the project's tests run them. They import neither pytest nor hypothesis.
"""
