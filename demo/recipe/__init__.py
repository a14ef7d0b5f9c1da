"""How the small checkpoint under `demo/checkpoint` is made: its corpus, vocabulary, training and evaluation."""
