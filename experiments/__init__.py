"""The paper's tables and figures on pocket: `python -m experiments`, or `make tables`."""
