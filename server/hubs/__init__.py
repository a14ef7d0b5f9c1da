"""Where checkpoints and adapters are: folders, hubs, the demo that comes along."""
