"""Injected faults: kills, full disks, signals, damaged and hostile files. `python -m tests.faults` runs them."""
