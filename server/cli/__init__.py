"""The command line: its parser and error messages, the flags' table, and flags of other servers."""
