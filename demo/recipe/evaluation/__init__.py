"""What the weights can do, on what training never draws."""
