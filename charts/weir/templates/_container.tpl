{{/* Parts of the services' containers. */}}

{{/* What every process is told. Takes (dict "root" $ "prefix" "GATEWAY" "port" … "metricsPort" …). */}}
{{- define "weir.commonEnv" -}}
{{- $values := .root.Values -}}
- name: {{ .prefix }}_LISTEN
  value: {{ printf "%s:%d" $values.listenHost (int .port) | quote }}
{{- if .metricsPort }}
- name: {{ .prefix }}_METRICS_LISTEN
  value: {{ printf "%s:%d" $values.listenHost (int .metricsPort) | quote }}
{{- end }}
- name: {{ .prefix }}_DRAIN_SECONDS
  value: {{ int $values.drain.seconds | quote }}
- name: {{ .prefix }}_LOG_LEVEL
  value: {{ $values.log.level }}
- name: {{ .prefix }}_LOG_FORMAT
  value: {{ $values.log.format }}
# The root file system cannot be written: caches and temporary files go here.
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
{{- end -}}

{{- define "weir.telemetryEnv" -}}
{{- $telemetry := .root.Values.telemetry -}}
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
  value: grpc
- name: OTEL_TRACES_SAMPLER
  value: {{ $telemetry.sampler }}
{{- if contains "ratio" $telemetry.sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $telemetry.samplerRatio | toString | quote }}
{{- else if eq $telemetry.sampler "parentbased_ratelimited" }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $telemetry.tracesPerSecond | toString | quote }}
{{- end }}
{{- $attributes := list "k8s.pod.name=$(POD_NAME)" "k8s.node.name=$(NODE_NAME)" (printf "k8s.namespace.name=%s" .root.Release.Namespace) "service.instance.id=$(POD_NAME)" }}
{{- range $key, $value := $telemetry.resourceAttributes }}
{{- $attributes = append $attributes (printf "%s=%s" $key $value) }}
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ join "," $attributes | quote }}
{{- else -}}
# Also where the image or the cluster sets it.
- name: OTEL_TRACES_EXPORTER
  value: none
{{- end -}}
{{- end -}}

{{/* Ports and probes of a gRPC service. Health is told in two names: "" for the process, which
     depends on no other, and the service's own for whether it can do its work now. */}}
{{- define "weir.grpcPorts" -}}
- name: grpc
  containerPort: {{ int .values.port }}
- name: metrics
  containerPort: {{ int .values.metricsPort }}
{{- if .root.Values.tls.enabled }}
- name: health
  containerPort: {{ include "weir.healthPort" . }}
{{- end }}
{{- end -}}

{{/* The kubelet's probes speak no TLS: with it, health is told on a port of its own. */}}
{{- define "weir.healthPort" -}}
{{- if .root.Values.tls.enabled }}50050{{ else }}{{ int .values.port }}{{ end -}}
{{- end -}}

{{- define "weir.grpcProbes" -}}
{{- $pod := include "weir.pod" . | fromJson -}}
{{- $port := include "weir.healthPort" . -}}
startupProbe:
  grpc:
    port: {{ $port }}
  {{- include "weir.startupTimes" .values | nindent 2 }}
readinessProbe:
  grpc:
    port: {{ $port }}
    service: {{ .service }}
  {{- include "weir.readinessTimes" $pod | nindent 2 }}
livenessProbe:
  grpc:
    port: {{ $port }}
  {{- include "weir.livenessTimes" $pod | nindent 2 }}
{{- end -}}

{{- define "weir.startupTimes" -}}
periodSeconds: 2
timeoutSeconds: 2
failureThreshold: {{ div (add (int .startupSeconds) 1) 2 }}
{{- end -}}

{{- define "weir.readinessTimes" -}}
periodSeconds: {{ int .probePeriodSeconds }}
timeoutSeconds: {{ int .probeTimeoutSeconds }}
failureThreshold: {{ int .probeFailureThreshold }}
{{- end -}}

{{/* Slower to give up than readiness: a pod that is only busy must not be ended. */}}
{{- define "weir.livenessTimes" -}}
periodSeconds: {{ mul 2 (int .probePeriodSeconds) }}
timeoutSeconds: {{ int .probeTimeoutSeconds }}
failureThreshold: {{ mul 3 (int .probeFailureThreshold) }}
{{- end -}}
