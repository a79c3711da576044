"""The commands: options, and what is printed."""
