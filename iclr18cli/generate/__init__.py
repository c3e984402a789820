"""Generative models: pictures of what they make, and measures of how good it is."""
