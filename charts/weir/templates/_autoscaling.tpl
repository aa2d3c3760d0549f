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

{{/* "true" if engines of some model are scaled to zero. */}}
{{- define "weir.scalesToZero" -}}
{{- range (include "weir.models" . | fromJson).weir -}}
{{- if and .inference.autoscaling.enabled (not (int .inference.autoscaling.minReplicas)) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether a service may have several pods. Takes its values. */}}
{{- define "weir.mayHaveSeveral" -}}
{{- if .autoscaling.enabled -}}
{{- if gt (int .autoscaling.maxReplicas) 1 }}true{{ end -}}
{{- else if gt (int .replicas) 1 -}}true
{{- end -}}
{{- end -}}

{{/* Whether orchestrators follow the engines' cache events, true or false. */}}
{{- define "weir.followKvEvents" -}}
{{- $routing := .Values.orchestrator.routing -}}
{{- $several := "" -}}
{{- if include "weir.mayHaveSeveral" .Values.orchestrator -}}
{{- range (include "weir.models" . | fromJson).weir -}}
{{- if include "weir.mayHaveSeveral" .inference }}{{ $several = "true" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if or (ne $routing.policy "prefix") (eq $routing.followKvEvents "never") -}}false
{{- else if or (eq $routing.followKvEvents "always") $several -}}true
{{- else -}}false
{{- end -}}
{{- end -}}

{{/* PromQL: the sum of a metric of the orchestrators for one model. Takes (dict "root" $ "metric" … "model" … "window" …). */}}
{{- define "weir.modelMetricSum" -}}
{{- $series := printf `%s{namespace="%s",pod=~"%s-[0-9a-z]+-[0-9a-z]+",model="%s"}` .metric .root.Release.Namespace (include "weir.componentName" (dict "root" .root "component" "orchestrator")) .model -}}
{{- if .window -}}sum(increase({{ $series }}[{{ .window }}])){{- else -}}sum({{ $series }}){{- end -}}
{{- end -}}

{{/* PromQL: the sum of a metric over a Deployment's pods. Takes (dict "root" $ "deployment" … "metric" …). */}}
{{- define "weir.podMetricSum" -}}
sum({{ .metric }}{namespace="{{ .root.Release.Namespace }}",pod=~"{{ .deployment }}-[0-9a-z]+-[0-9a-z]+"})
{{- end -}}
