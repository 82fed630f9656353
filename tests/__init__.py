"""Tests; a package, so that `python -m tests.faults` finds this one and not a library's folder of the same name."""
