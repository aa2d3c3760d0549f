{{/* Names and labels. */}}

{{- define "weir.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 31 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of all objects. Cut so that with the longest suffix, of 31, it fits into 63 characters. */}}
{{- define "weir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 31 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "weir.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 31 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 31 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A model's name as part of an object's name: at most 20 characters of a-z, 0-9 and -. */}}
{{- define "weir.slug" -}}
{{- . | lower | replace "." "-" | replace "/" "-" | replace "_" "-" | trunc 20 | trimAll "-" -}}
{{- end -}}

{{/* Name of a component's objects. Takes (dict "root" $ "component" … "slug" …). */}}
{{- define "weir.componentName" -}}
{{- $name := printf "%s-%s" (include "weir.fullname" .root) .component -}}
{{- if .slug -}}{{ printf "%s-%s" $name .slug }}{{- else -}}{{ $name }}{{- end -}}
{{- end -}}

{{/* Labels that never change. Takes the same dict. */}}
{{- define "weir.selectorLabels" -}}
app.kubernetes.io/name: {{ include "weir.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .slug }}
weir/model: {{ . }}
{{- end }}
{{- end -}}

{{/* All labels of an object. Takes the same dict. */}}
{{- define "weir.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "weir.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: weir
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of a pod: nothing that changes with the chart's version, which would start all pods
     anew for nothing. Takes the same dict. */}}
{{- define "weir.podLabels" -}}
{{ include "weir.selectorLabels" . }}
app.kubernetes.io/part-of: weir
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object. Takes the same dict, and optionally "name", "annotations"
     and "extraLabels". */}}
{{- define "weir.metadata" -}}
name: {{ default (include "weir.componentName" .) .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "weir.labels" . | nindent 2 }}
  {{- with .extraLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "weir.serviceAccountName" -}}
{{- default (printf "%s-%s" (include "weir.fullname" .root) .component) .pod.serviceAccountName -}}
{{- end -}}
