"""Models that ship with the project, and how they are made."""
