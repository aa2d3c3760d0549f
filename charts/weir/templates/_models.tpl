{{/* The list of models, and the files of a model. */}}

{{/*
Merges "from" into "into", key by key. Unlike mergeOverwrite it also takes 0, false and "" from
"from", so that an override can say `replicas: 0`.
*/}}
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

{{/*
JSON of {"models": […], "tokenizers": […], "weir": […], "vllm": […], "external": […]}. "models" are
the models of the values, completed with the defaults, the slug and the model's own sections;
"tokenizers" are those of them that have their own tokenizer, "weir", "vllm" and "external" those
with such engines. The first call keeps the result in .Values, because almost every template needs it.
*/}}
{{- define "weir.models" -}}
{{- if not (hasKey .Values "completedModels") -}}
{{- $_ := set .Values "completedModels" (include "weir.completedModels" .) -}}
{{- end -}}
{{- .Values.completedModels -}}
{{- end -}}

{{- define "weir.completedModels" -}}
{{- $hub := dict "id" "" "revision" "main" "sha256" dict "endpoint" "" "tokenSecret" "" "tokenKey" "token" "size" "20Gi" "storageClass" "" "accessMode" "ReadWriteOnce" -}}
{{- $models := list -}}
{{- $tokenizers := list -}}
{{- $engines := dict "weir" list "vllm" list "external" list -}}
{{- range .Values.models -}}
{{- $model := dict "engine" "weir" "external" (dict "addresses" list) "source" "demo" "package" "chat" "hub" (deepCopy $hub) "pvc" (dict "claim" "" "path" "") "tokenizer" "" "inference" (deepCopy $.Values.inference) "vllm" (deepCopy $.Values.vllm) "inferencePool" (deepCopy $.Values.inferencePool) -}}
{{- include "weir.override" (dict "into" $model "from" .) -}}
{{- $_ := set $model "slug" (include "weir.slug" .name) -}}
{{- $models = append $models $model -}}
{{- $_ := set $engines $model.engine (append (get $engines $model.engine) $model) -}}
{{- if not $model.tokenizer -}}{{ $tokenizers = append $tokenizers $model }}{{- end -}}
{{- end -}}
{{- merge (dict "models" $models "tokenizers" $tokenizers) $engines | toJson -}}
{{- end -}}

{{/* Name of the claim that a model of the hub is downloaded to. Takes (dict "root" $ "model" …). */}}
{{- define "weir.modelClaim" -}}
{{- include "weir.componentName" (dict "root" .root "component" "model" "slug" .model.slug) -}}
{{- end -}}

{{/* Folder of a model's files in the container. Takes the model. The images contain /app/models/demo,
     chat and, if they were built with EMBEDDING_MODEL=1, encoder. */}}
{{- define "weir.modelPath" -}}
{{- if eq .source "demo" -}}models/demo
{{- else if eq .source "package" -}}/app/models/{{ .package }}
{{- else if eq .source "hub" -}}/models/{{ .slug }}
{{- else -}}{{ printf "/models/%s" .pvc.path | trimSuffix "/" }}
{{- end -}}
{{- end -}}

{{/* "true" if the tokenizer mounts the engine's volume instead of downloading its own files. */}}
{{- define "weir.tokenizerSharesVolume" -}}
{{- $hasClaim := and (eq .source "hub") (ne .engine "external") -}}
{{- if or (eq .source "pvc") (and $hasClaim (eq .hub.accessMode "ReadWriteMany")) -}}true{{- end -}}
{{- end -}}

{{/*
Init container that downloads and verifies the missing files of a model of the hub. Without missing
files it needs no network. Takes (dict "root" $ "model" … "image" … "gpu" … "pod" … "what" …), where
"what" is model or tokenizer.
*/}}
{{- define "weir.downloadContainer" -}}
{{- $hub := .model.hub -}}
- name: download
  image: {{ include "weir.image" . | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [python, -m, mesh.hub.download]
  args:
    - --model={{ $hub.id }}
    - --revision={{ $hub.revision }}
    - --folder={{ include "weir.modelPath" .model }}
    - --what={{ .what }}
    {{- range $file, $sha256 := $hub.sha256 }}
    - --sha256={{ $file }}={{ $sha256 }}
    {{- end }}
  env:
    - name: HOME
      value: /tmp
    - name: HF_HOME
      value: /tmp/huggingface
    {{- with $hub.endpoint }}
    - name: HF_ENDPOINT
      value: {{ . | quote }}
    {{- end }}
    {{- with $hub.tokenSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: {{ $hub.tokenKey }}
    {{- end }}
    {{- with include "weir.internetEnv" .root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .pod.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml .root.Values.modelDownload.resources | nindent 4 }}
  securityContext:
    {{- include "weir.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: model
      mountPath: /models
    {{- with include "weir.caBundleMount" .root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .pod.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
