"""Rollouts without Kubernetes: the chart's pods as processes in a network namespace.

`kubelet` runs the pods of the rendered manifests, `deployment` replaces and scales them as the
controllers of Kubernetes do, `name_server` answers DNS, late if asked, and `rehearsal` sends load
meanwhile.
"""
