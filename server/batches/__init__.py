"""Work by the file: a request a line, done behind the live ones."""
