"""One class for each kind of official file: found by being here, so that a new kind is a new class."""
