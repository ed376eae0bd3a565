"""Recipe → steps with keys, their state, and their execution."""
