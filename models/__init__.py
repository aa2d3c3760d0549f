"""Models that ship with the project, with the code that trains and evaluates them."""
