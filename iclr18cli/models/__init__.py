"""Networks by name, what a run keeps of them, and what they can be asked for."""
