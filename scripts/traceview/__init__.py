"""Trace viewer for local runs: an OTLP receiver, a web page and a terminal printer.

It needs no other service. In a cluster, use Grafana and Tempo (`charts/observability`).
"""
