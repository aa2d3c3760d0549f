"""The HTTP server: routes, headers, error bodies, OpenAPI, drain."""
