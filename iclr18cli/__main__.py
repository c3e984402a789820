"""`python -m iclr18cli`: the same as `iclr18`."""

from iclr18cli.cli import main

if __name__ == "__main__":
    main()
