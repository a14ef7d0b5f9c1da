"""How well a checkpoint reads text of growing length, with each of the means that reach beyond its trained length."""
