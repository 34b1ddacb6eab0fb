"""The tasks: one file each, none knows another."""
