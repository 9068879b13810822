"""Storage by URI, output folders with one writer, files shared by the processes of a node. No Ray, no torch."""
