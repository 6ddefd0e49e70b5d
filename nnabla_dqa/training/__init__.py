"""Training by a recipe: the loop, what it trains, and what a run leaves."""
