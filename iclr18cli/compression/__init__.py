"""Compression that several techniques share: codes of weights and activations, packing, products."""
