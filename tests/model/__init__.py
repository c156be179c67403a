"""The specification as a naive program; see `reference.py`."""
