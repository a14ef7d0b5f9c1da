"""Speed of one sequence by the length of its context."""
