"""The machine: what it can do, what the lab keeps on it, and how it is set up."""
