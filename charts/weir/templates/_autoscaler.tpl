{{/* What scales a service: an HPA or KEDA's ScaledObject, never both.
     Takes (dict "root" $ "component" … "slug" … "values" …). */}}
{{- define "weir.autoscaler" -}}
{{- if .values.autoscaling.enabled -}}
{{- if eq .root.Values.autoscaling.engine "keda" -}}
{{- include "weir.scaledObject" . -}}
{{- else -}}
{{- include "weir.horizontalPodAutoscaler" . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The pods' own metrics that a service is scaled by, as JSON {"name": target}. */}}
{{- define "weir.podMetrics" -}}
{{- $scaling := .values.autoscaling -}}
{{- $targets := dict -}}
{{- if eq .component "inference" -}}
{{- $_ := set $targets "inference_num_requests_waiting" $scaling.targetWaiting -}}
{{- $_ := set $targets "inference_kv_cache_usage" $scaling.targetKvUsage -}}
{{- else -}}
{{- $names := dict "gateway" "gateway_num_streams_active" "orchestrator" "orchestrator_num_requests_running" "tokenizer" "tokenizer_num_requests_running" -}}
{{- $_ := set $targets (get $names .component) $scaling.targetInFlight -}}
{{- end -}}
{{- $used := dict -}}
{{- range $name, $target := $targets -}}
{{- if $target }}{{ $_ := set $used $name (toString $target) }}{{ end -}}
{{- end -}}
{{- $used | toJson -}}
{{- end -}}

{{/* Slow to take pods away: each that goes must drain, and engines are slow to come back. */}}
{{- define "weir.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 15
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - type: Pods
      value: 1
      periodSeconds: {{ max 60 (int (include "weir.terminationGracePeriodSeconds" .root)) }}
{{- end -}}

{{- define "weir.horizontalPodAutoscaler" -}}
{{- $scaling := .values.autoscaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "weir.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "weir.componentName" . }}
  minReplicas: {{ int $scaling.minReplicas }}
  maxReplicas: {{ int $scaling.maxReplicas }}
  behavior:
    {{- include "weir.scalingBehavior" . | nindent 4 }}
  metrics:
    {{- if $scaling.targetCPU }}
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ int $scaling.targetCPU }}
    {{- end }}
    {{- if .root.Values.autoscaling.customMetrics }}
    {{- range $name, $target := include "weir.podMetrics" . | fromJson }}
    - type: Pods
      pods:
        metric:
          name: {{ $name }}
        target:
          type: AverageValue
          averageValue: {{ $target | quote }}
    {{- end }}
    {{- end }}
{{- end -}}

{{- define "weir.scaledObject" -}}
{{- $scaling := .values.autoscaling -}}
{{- $name := include "weir.componentName" . -}}
{{- $pods := printf "namespace=%q,pod=~\"%s-[0-9a-z]+-[0-9a-z]+\"" .root.Release.Namespace $name -}}
{{- $address := .root.Values.autoscaling.prometheusAddress -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "weir.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ $name }}
  minReplicaCount: {{ int $scaling.minReplicas }}
  maxReplicaCount: {{ int $scaling.maxReplicas }}
  pollingInterval: {{ int .root.Values.autoscaling.pollingInterval }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- include "weir.scalingBehavior" . | nindent 8 }}
  triggers:
    {{- if $scaling.targetCPU }}
    - type: cpu
      metricType: Utilization
      metadata:
        value: {{ int $scaling.targetCPU | quote }}
    {{- end }}
    {{- range $metric, $target := include "weir.podMetrics" . | fromJson }}
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ $address }}
        # The sum, which KEDA shares out among the pods.
        query: {{ printf "sum(%s{%s})" $metric $pods | squote }}
        threshold: {{ $target | quote }}
    {{- end }}
{{- end -}}
