{{/*
Names, labels and addresses.

Most helpers take one dict: "root" ($), "component" (gateway, orchestrator, tokenizer, inference,
vllm, vllm-worker, lws, pool, model or test) and, for the objects of one model, "slug".
*/}}

{{- define "weir.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 31 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of all names. At most 31 characters, so that 63 suffice with the longest suffix. */}}
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

{{/* A model's name as part of an object's name: at most 20 characters of a-z, 0-9 and "-". */}}
{{- define "weir.slug" -}}
{{- . | lower | replace "." "-" | replace "/" "-" | replace "_" "-" | trunc 20 | trimAll "-" -}}
{{- end -}}

{{/* Name of a component's objects. */}}
{{- define "weir.componentName" -}}
{{- $name := printf "%s-%s" (include "weir.fullname" .root) .component -}}
{{- if .slug -}}{{ printf "%s-%s" $name .slug }}{{- else -}}{{ $name }}{{- end -}}
{{- end -}}

{{/* Name of the Service by which gateways find one another. */}}
{{- define "weir.gatewayPeersName" -}}
{{- include "weir.componentName" (dict "root" . "component" "gateway") }}-peers
{{- end -}}

{{/* Name of the ConfigMap with the script of `helm test`. */}}
{{- define "weir.testScriptName" -}}
{{- include "weir.componentName" (dict "root" . "component" "test") }}-script
{{- end -}}

{{/* One service account for a component; also takes "pod", the component's pod values. */}}
{{- define "weir.serviceAccountName" -}}
{{- default (printf "%s-%s" (include "weir.fullname" .root) .component) .pod.serviceAccountName -}}
{{- end -}}

{{/* Labels for selectors, which are immutable. */}}
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

{{/* Labels of an object. */}}
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

{{/* Labels of a pod: without the versions, because a change of a pod's labels restarts it. */}}
{{- define "weir.podLabels" -}}
{{ include "weir.selectorLabels" . }}
app.kubernetes.io/part-of: weir
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .pod.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object. Also takes "name", "annotations" and "extraLabels", all optional. */}}
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

{{/* HOST:PORT of the orchestrator. */}}
{{- define "weir.orchestratorAddress" -}}
{{- printf "%s:%d" (include "weir.componentName" (dict "root" . "component" "orchestrator")) (int .Values.orchestrator.port) -}}
{{- end -}}

{{/* HOST:PORT of the only tokenizer, or MODEL=HOST:PORT for each model. */}}
{{- define "weir.tokenizerAddress" -}}
{{- if .Values.orchestrator.tokenizerAddress -}}
{{- .Values.orchestrator.tokenizerAddress -}}
{{- else -}}
{{- $known := include "weir.models" . | fromJson -}}
{{- $addresses := list -}}
{{- range $known.models -}}
{{- $slug := include "weir.slug" (default .name .tokenizer) -}}
{{- $address := printf "%s:%d" (include "weir.componentName" (dict "root" $ "component" "tokenizer" "slug" $slug)) (int $.Values.tokenizer.port) -}}
{{- $addresses = append $addresses (ternary (printf "%s=%s" .name $address) $address (gt (len $known.tokenizers) 1)) -}}
{{- end -}}
{{- $addresses | uniq | join "," -}}
{{- end -}}
{{- end -}}

{{/*
The address of every engine: MODEL=HOST:PORT, with the scheme of its protocol for vLLM. Named, a model
is known without a ready engine as well. External engines may serve several models.
*/}}
{{- define "weir.inferenceAddress" -}}
{{- if .Values.orchestrator.inferenceAddress -}}
{{- .Values.orchestrator.inferenceAddress -}}
{{- else -}}
{{- $addresses := list -}}
{{- range (include "weir.models" . | fromJson).models -}}
{{- if eq .engine "external" -}}
{{- $addresses = concat $addresses .external.addresses -}}
{{- else if eq .engine "vllm" -}}
{{- $name := include "weir.componentName" (dict "root" $ "component" "vllm" "slug" .slug) -}}
{{- $addresses = append $addresses (printf "%s=vllm+%s://%s:%d" .name .vllm.protocol $name (include "weir.vllmPort" .vllm | int)) -}}
{{- else -}}
{{- $name := include "weir.componentName" (dict "root" $ "component" "inference" "slug" .slug) -}}
{{- $addresses = append $addresses (printf "%s=%s:%d" .name $name (int .inference.port)) -}}
{{- end -}}
{{- end -}}
{{- $addresses | join "," -}}
{{- end -}}
{{- end -}}

{{/* Port of a URL or a HOST:PORT. Takes (dict "address" … "default" …). */}}
{{- define "weir.portOf" -}}
{{- $rest := .address | splitList "://" | last | trimSuffix "/" -}}
{{- $port := regexFind ":[0-9]+$" ($rest | splitList "/" | first) | trimPrefix ":" -}}
{{- default .default $port -}}
{{- end -}}
