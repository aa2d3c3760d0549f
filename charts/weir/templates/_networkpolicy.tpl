{{/* Rules that several network policies contain. */}}

{{/* The pods of a component as a peer. Takes (dict "root" $ "component" … "slug" …). */}}
{{- define "weir.peer" -}}
- podSelector:
    matchLabels:
      {{- include "weir.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* Egress to the DNS servers. */}}
{{- define "weir.dnsEgress" -}}
- ports:
    {{- range .Values.networkPolicy.dnsPorts }}
    - protocol: UDP
      port: {{ int . }}
    - protocol: TCP
      port: {{ int . }}
    {{- end }}
  {{- with .Values.networkPolicy.dnsTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Egress to the OTLP collector; telemetry.endpoint must be set. */}}
{{- define "weir.otlpEgress" -}}
{{- $endpoint := .Values.telemetry.endpoint }}
{{- $default := "4317" }}
{{- if hasPrefix "http/" (default "grpc" .Values.telemetry.protocol) }}
{{- $default = ternary "443" "80" (hasPrefix "https" $endpoint) }}
{{- end -}}
- ports:
    - protocol: TCP
      port: {{ include "weir.portOf" (dict "address" $endpoint "default" $default) }}
  {{- with .Values.networkPolicy.telemetryTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Egress to the Hugging Face hub, or its mirror. */}}
{{- define "weir.hubEgress" -}}
- ports:
    - protocol: TCP
      port: 443
  {{- with .Values.networkPolicy.hubTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Egress to the HTTP proxy; may be empty. */}}
{{- define "weir.proxyEgress" -}}
{{- with .Values.egressProxy.url -}}
- ports:
    - protocol: TCP
      port: {{ include "weir.portOf" (dict "address" . "default" (ternary "443" "80" (hasPrefix "https" .))) }}
  {{- with $.Values.networkPolicy.proxyTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Egress to a HOST:PORT outside the release. Takes (dict "root" $ "address" …). */}}
{{- define "weir.upstreamEgress" -}}
- ports:
    - protocol: TCP
      port: {{ include "weir.portOf" (dict "address" .address "default" "443") }}
  {{- with .root.Values.networkPolicy.upstreamTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
