"""Files with a request a line, done after the requests of clients that wait."""
