"""The figures of the three papers, each drawn by one command, and what they show on pocket."""
