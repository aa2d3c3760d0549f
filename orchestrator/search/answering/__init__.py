"""Whether the results answer a query, and the constraint that binds the answer to them."""
