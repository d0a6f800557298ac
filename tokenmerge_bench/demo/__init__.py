"""Data and weights of the embedded benchmark."""
