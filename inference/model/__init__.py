"""Models: configuration, weights, layers, and the kernels that compute them."""
