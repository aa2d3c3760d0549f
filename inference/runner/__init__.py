"""Runs a scheduled batch on the device: input tensors, forward pass, sampling."""
