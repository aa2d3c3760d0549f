{{/* Parts of the network policies. */}}

{{/* The pods of a component. Takes (dict "root" $ "component" … "slug" …). */}}
{{- define "weir.pods" -}}
podSelector:
  matchLabels:
    {{- include "weir.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/* The head of a component's policy. Takes the same dict. */}}
{{- define "weir.policyHead" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "weir.metadata" . | nindent 2 }}
spec:
  {{- include "weir.pods" . | nindent 2 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* One rule. Takes (dict "key" "from" or "to" "peers" YAML, empty: anybody "ports" [int] "protocols" […]). */}}
{{- define "weir.rule" -}}
{{- $protocols := default (list "TCP") .protocols -}}
- ports:
    {{- range $port := .ports }}
    {{- range $protocols }}
    - protocol: {{ . }}
      port: {{ int $port }}
    {{- end }}
    {{- end }}
  {{- with .peers }}
  {{ $.key }}:
    {{- . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Pods of a component as a peer. */}}
{{- define "weir.peer" -}}
- podSelector:
    matchLabels:
      {{- include "weir.selectorLabels" . | nindent 6 }}
{{- end -}}

{{- define "weir.peers" -}}
{{- with . }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "weir.dnsRule" -}}
{{- $policy := .Values.networkPolicy -}}
{{- include "weir.rule" (dict "key" "to" "peers" (include "weir.peers" $policy.dnsTo) "ports" $policy.dnsPorts "protocols" (list "UDP" "TCP")) -}}
{{- end -}}

{{- define "weir.otlpRule" -}}
{{- $endpoint := .Values.telemetry.endpoint -}}
{{- if $endpoint -}}
{{- $port := include "weir.portOf" (dict "address" $endpoint "default" "4317") -}}
{{- include "weir.rule" (dict "key" "to" "peers" (include "weir.peers" .Values.networkPolicy.telemetryTo) "ports" (list $port)) -}}
{{- end -}}
{{- end -}}

{{- define "weir.hubRule" -}}
{{- include "weir.rule" (dict "key" "to" "peers" (include "weir.peers" .Values.networkPolicy.hubTo) "ports" (list 443)) -}}
{{- end -}}

{{/* Prometheus, and the pod of `helm test`. Takes (dict "root" $ "port" … "test" bool). */}}
{{- define "weir.metricsRules" -}}
{{- with .root.Values.networkPolicy.metricsFrom }}
{{ include "weir.rule" (dict "key" "from" "peers" (include "weir.peers" .) "ports" (list $.port)) }}
{{- end }}
{{- if and .test .root.Values.tests.enabled }}
{{ include "weir.rule" (dict "key" "from" "peers" (include "weir.peer" (dict "root" .root "component" "test")) "ports" (list .port)) }}
{{- end }}
{{- end -}}
