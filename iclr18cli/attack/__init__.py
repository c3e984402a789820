"""Attacks on single inputs: what an adversary may do, those that try, and what they found."""
