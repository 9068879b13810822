"""A pretended GPU, for tests where there is none: `card.PretendCard`."""
