{{/* What follows from the values. */}}

{{/* Sets every key of "from" in "into", maps key by key. Unlike mergeOverwrite it takes 0, false
     and "" for what they are, so that an override can say `replicas: 0`. */}}
{{- define "weir.override" -}}
{{- $into := .into -}}
{{- range $key, $value := .from -}}
{{- $before := get $into $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $before) -}}
{{- include "weir.override" (dict "into" $before "from" $value) -}}
{{- else -}}
{{- $_ := set $into $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* `pod` with a service's overrides, as JSON. Takes (dict "root" $ "values" …). */}}
{{- define "weir.pod" -}}
{{- $pod := deepCopy .root.Values.pod -}}
{{- include "weir.override" (dict "into" $pod "from" (default dict .values.pod)) -}}
{{- $pod | toJson -}}
{{- end -}}

{{/* The models, complete, as JSON {"models": […]}: defaults filled in, with their slug and with
     `inference` as it is for them. */}}
{{- define "weir.models" -}}
{{- $hub := dict "id" "" "revision" "main" "sha256" dict "endpoint" "" "tokenSecret" "" "tokenKey" "token" "size" "20Gi" "storageClass" "" "accessMode" "ReadWriteOnce" -}}
{{- $models := list -}}
{{- range .Values.models -}}
{{- $model := dict "source" "demo" "hub" (deepCopy $hub) "pvc" (dict "claim" "" "path" "") "tokenizer" "" "inference" (deepCopy $.Values.inference) -}}
{{- include "weir.override" (dict "into" $model "from" .) -}}
{{- $_ := set $model "slug" (include "weir.slug" .name) -}}
{{- $models = append $models $model -}}
{{- end -}}
{{- dict "models" $models | toJson -}}
{{- end -}}

{{/* Reference of an image. Takes (dict "root" $ "image" … "gpu" …); "gpu" for the engine's. */}}
{{- define "weir.image" -}}
{{- $values := .root.Values -}}
{{- $registry := default $values.image.registry $values.global.imageRegistry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .image.repository -}}:
{{- if .image.tag -}}
{{- .image.tag -}}
{{- else -}}
{{- default .root.Chart.AppVersion $values.image.tag -}}
{{- if .gpu -}}{{- if int .gpu.count -}}{{ .gpu.tagSuffix }}{{- end -}}{{- end -}}
{{- end -}}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Seconds between the start of a pod's end and SIGTERM, in which endpoints and names forget it. */}}
{{- define "weir.preStopSeconds" -}}
{{- $drain := int .Values.drain.seconds -}}
{{- if $drain -}}{{ min 10 (max 1 (div $drain 6)) }}{{- else -}}0{{- end -}}
{{- end -}}

{{/* preStop, the process's own deadline, and 10 seconds to cut off, close and send spans. */}}
{{- define "weir.terminationGracePeriodSeconds" -}}
{{- add (int (include "weir.preStopSeconds" .)) (int .Values.drain.seconds) 10 -}}
{{- end -}}

{{/* Longer than any request: what a proxy in front may wait, in seconds. */}}
{{- define "weir.proxyTimeoutSeconds" -}}
{{- add (ceil .Values.gateway.requestTimeoutSeconds) 10 -}}
{{- end -}}

{{- define "weir.orchestratorAddress" -}}
{{- printf "%s:%d" (include "weir.componentName" (dict "root" . "component" "orchestrator")) (int .Values.orchestrator.port) -}}
{{- end -}}

{{/* HOST:PORT of the tokenizer, or MODEL=HOST:PORT for each model where they differ. */}}
{{- define "weir.tokenizerAddress" -}}
{{- if .Values.orchestrator.tokenizerAddress -}}
{{- .Values.orchestrator.tokenizerAddress -}}
{{- else -}}
{{- $models := (include "weir.models" . | fromJson).models -}}
{{- $addresses := list -}}
{{- $own := 0 -}}
{{- range $models -}}
{{- if not .tokenizer }}{{ $own = add $own 1 }}{{ end -}}
{{- end -}}
{{- range $models -}}
{{- $slug := include "weir.slug" (default .name .tokenizer) -}}
{{- $address := printf "%s:%d" (include "weir.componentName" (dict "root" $ "component" "tokenizer" "slug" $slug)) (int $.Values.tokenizer.port) -}}
{{- $addresses = append $addresses (ternary (printf "%s=%s" .name $address) $address (gt (int $own) 1)) -}}
{{- end -}}
{{- $addresses | uniq | join "," -}}
{{- end -}}
{{- end -}}

{{- define "weir.inferenceAddress" -}}
{{- if .Values.orchestrator.inferenceAddress -}}
{{- .Values.orchestrator.inferenceAddress -}}
{{- else -}}
{{- $addresses := list -}}
{{- range (include "weir.models" . | fromJson).models -}}
{{- $name := include "weir.componentName" (dict "root" $ "component" "inference" "slug" .slug) -}}
{{- $addresses = append $addresses (printf "%s:%d" $name (int .inference.port)) -}}
{{- end -}}
{{- $addresses | join "," -}}
{{- end -}}
{{- end -}}

{{/* Port of an http(s) or HOST:PORT address. Takes (dict "address" … "default" …). */}}
{{- define "weir.portOf" -}}
{{- $rest := .address | trimPrefix "https://" | trimPrefix "http://" | trimSuffix "/" -}}
{{- $port := regexFind ":[0-9]+$" ($rest | splitList "/" | first) | trimPrefix ":" -}}
{{- default .default $port -}}
{{- end -}}

{{- define "weir.priorityClassName" -}}
{{- if .pod.priorityClassName -}}{{ .pod.priorityClassName }}
{{- else if .root.Values.priorityClass.create -}}{{ printf "%s-%s" .root.Release.Namespace (include "weir.fullname" .root) }}
{{- end -}}
{{- end -}}
