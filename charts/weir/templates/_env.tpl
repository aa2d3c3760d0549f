{{/* Environment variables that the services share. */}}

{{/* Takes (dict "root" $ "prefix" …), where "prefix" is the service's, such as GATEWAY. */}}
{{- define "weir.commonEnv" -}}
{{- $values := .root.Values -}}
- name: {{ .prefix }}_DRAIN_SECONDS
  value: {{ int $values.drain.seconds | quote }}
- name: {{ .prefix }}_LOG_LEVEL
  value: {{ $values.log.level }}
- name: {{ .prefix }}_LOG_FORMAT
  value: {{ $values.log.format }}
# The root file system is read-only: caches and temporary files are written to /tmp.
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
{{- end -}}

{{/* HOST:PORT to listen on. Takes (dict "root" $ "port" …). */}}
{{- define "weir.listen" -}}
{{- printf "%s:%d" .root.Values.listenHost (int .port) -}}
{{- end -}}

{{/* The OpenTelemetry SDK's variables. */}}
{{- define "weir.telemetryEnv" -}}
{{- $telemetry := .Values.telemetry -}}
{{- if $telemetry.endpoint -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $telemetry.endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ default "grpc" $telemetry.protocol }}
- name: OTEL_TRACES_SAMPLER
  value: {{ $telemetry.sampler }}
{{- if contains "ratio" $telemetry.sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $telemetry.samplerRatio | toString | quote }}
{{- else if eq $telemetry.sampler "parentbased_ratelimited" }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $telemetry.tracesPerSecond | toString | quote }}
{{- end }}
{{- $attributes := list "k8s.pod.name=$(POD_NAME)" "k8s.node.name=$(NODE_NAME)" (printf "k8s.namespace.name=%s" .Release.Namespace) "service.instance.id=$(POD_NAME)" }}
{{- range $key, $value := $telemetry.resourceAttributes }}
{{- $attributes = append $attributes (printf "%s=%s" $key $value) }}
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ join "," $attributes | quote }}
{{- else -}}
# Overrides an exporter that the image or the cluster configures.
- name: OTEL_TRACES_EXPORTER
  value: none
{{- end -}}
{{- end -}}

{{/* Variables for requests that leave the cluster: the proxy and the CA bundle. May be empty. Upper
     case only, which gRPC does not read: calls over gRPC use no proxy. */}}
{{- define "weir.internetEnv" -}}
{{- $proxy := .Values.egressProxy -}}
{{- with $proxy.url }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
- name: HTTP_PROXY
  value: {{ . | quote }}
- name: NO_PROXY
  value: {{ $proxy.noProxy | quote }}
{{- end }}
{{- if .Values.caBundle.configMap }}
- name: SSL_CERT_FILE
  value: {{ include "weir.caBundleFile" . }}
- name: REQUESTS_CA_BUNDLE
  value: {{ include "weir.caBundleFile" . }}
{{- end }}
{{- end -}}

{{- define "weir.caBundleFile" -}}/etc/weir/ca/{{ .Values.caBundle.key }}{{- end -}}

{{/* Mount of the CA bundle, and its volume; may be empty. */}}
{{- define "weir.caBundleMount" -}}
{{- if .Values.caBundle.configMap -}}
- name: ca-bundle
  mountPath: /etc/weir/ca
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "weir.caBundleVolume" -}}
{{- with .Values.caBundle.configMap -}}
- name: ca-bundle
  configMap:
    name: {{ . }}
{{- end -}}
{{- end -}}
