{{/* What the HorizontalPodAutoscalers and KEDA's ScaledObjects share. */}}

{{/*
Scales up fast and down slowly: a pod that is removed drains first, and an engine takes minutes to
start again.
*/}}
{{- define "weir.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 15
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - type: Pods
      value: 1
      periodSeconds: {{ max 60 (int (include "weir.terminationGracePeriodSeconds" .)) }}
{{- end -}}

{{/* PromQL: the sum of a metric over a Deployment's pods. Takes (dict "root" $ "deployment" … "metric" …). */}}
{{- define "weir.podMetricSum" -}}
sum({{ .metric }}{namespace="{{ .root.Release.Namespace }}",pod=~"{{ .deployment }}-[0-9a-z]+-[0-9a-z]+"})
{{- end -}}
