"""Certificates: what holds for a model, with its verdict and its limits."""
