"""What both processes live by: no torch here."""
