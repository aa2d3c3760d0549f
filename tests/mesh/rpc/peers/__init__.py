"""Tests of `mesh.rpc.peers`."""
