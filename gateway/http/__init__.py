"""The HTTP server and what every endpoint needs of HTTP: routes, headers, error bodies, OpenAPI."""
