"""What a server has to live through, done to real ones."""
