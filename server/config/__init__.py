"""How settings are read: their types, and the flags, variables and files that they come from."""
