"""One model on several ranks: who has which part of a weight, and how ranks speak to each other."""
