"""Contract of the members of each family, as checks: functions that fail if a member breaks it.

`robust check-member NAME` and the project's tests run them. They do not import pytest or hypothesis.
"""
