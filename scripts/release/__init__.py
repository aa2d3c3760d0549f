"""Publishes SBOMs, provenance and the chart in an OCI registry (`make release`)."""
