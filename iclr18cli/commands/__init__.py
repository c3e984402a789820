"""The subcommands of the core, one thin file each."""
