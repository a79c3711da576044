"""Pictures: where they come from, how they are opened, and what compares two."""
