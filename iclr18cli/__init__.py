"""Train, attack and certify neural networks: techniques of ICLR 2018 as plugins of one command line."""

__version__ = "0.1.0"
