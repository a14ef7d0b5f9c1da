"""What the HTTP process and the engine process share; no torch here."""
