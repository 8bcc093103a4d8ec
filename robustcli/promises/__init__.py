"""Promises of the members of each family: functions that fail if a member breaks one.

`robust check-member NAME` and the project's tests run them. They do not import pytest or hypothesis.
"""
