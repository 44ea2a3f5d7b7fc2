"""Learning: objectives, the one training loop, trajectories, resuming, recipes. Recipes need no torch."""
