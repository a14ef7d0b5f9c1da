"""Where checkpoints and adapters come from: folders, hubs, the demo in this package."""
