"""What clients see of the four processes: HTTP API, official clients, the search page."""
