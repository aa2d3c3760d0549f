"""Tests of a gateway process by raw HTTP and by clients of other languages."""
