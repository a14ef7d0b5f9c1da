"""The command line: its flags, its mistakes, and the flags people know from elsewhere."""
