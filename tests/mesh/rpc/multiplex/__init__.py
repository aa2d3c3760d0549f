"""Tests of `mesh.rpc.multiplex`."""
