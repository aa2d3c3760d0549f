"""Grafana dashboards as code. `python -m scripts.dashboards` writes charts/weir/dashboards."""
