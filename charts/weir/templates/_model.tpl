{{/* Where a model's files come from. Each takes (dict "root" $ "model" …). */}}

{{- define "weir.modelClaim" -}}
{{- include "weir.componentName" (dict "root" .root "component" "model" "slug" .model.slug) -}}
{{- end -}}

{{/* INFERENCE_MODEL or TOKENIZER_MODEL; the images' working directory has models/demo. */}}
{{- define "weir.modelPath" -}}
{{- if eq .model.source "demo" -}}models/demo
{{- else if eq .model.source "hub" -}}/models/{{ .model.slug }}
{{- else -}}{{ printf "/models/%s" .model.pvc.path | trimSuffix "/" }}
{{- end -}}
{{- end -}}

{{/* Whether the tokenizer reads the volume of the engine instead of downloading its own files. */}}
{{- define "weir.tokenizerSharesVolume" -}}
{{- if or (eq .model.source "pvc") (and (eq .model.source "hub") (eq .model.hub.accessMode "ReadWriteMany")) -}}true{{- end -}}
{{- end -}}

{{- define "weir.modelMounts" -}}
{{- if ne .model.source "demo" -}}
- name: model
  mountPath: /models
  readOnly: true
{{- end -}}
{{- end -}}

{{/* Takes "own": whether the volume is the pod's own, not the claim. */}}
{{- define "weir.modelVolumes" -}}
{{- if eq .model.source "pvc" -}}
- name: model
  persistentVolumeClaim:
    claimName: {{ .model.pvc.claim }}
    readOnly: true
{{- else if eq .model.source "hub" -}}
{{- if .own -}}
- name: model
  emptyDir:
    sizeLimit: 1Gi
{{- else -}}
- name: model
  persistentVolumeClaim:
    claimName: {{ include "weir.modelClaim" . }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Downloads what is missing, checks it, and goes; where all is there it needs no network.
     Takes "image", "gpu" and "what" (model or tokenizer) as well. */}}
{{- define "weir.modelDownload" -}}
{{- if eq .model.source "hub" -}}
{{- $hub := .model.hub -}}
- name: download
  image: {{ include "weir.image" (dict "root" .root "image" .image "gpu" .gpu) | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [python, -m, mesh.hub.download]
  args:
    - --model={{ $hub.id }}
    - --revision={{ $hub.revision }}
    - --folder={{ include "weir.modelPath" . }}
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
  resources:
    requests:
      cpu: 100m
      memory: 256Mi
    limits:
      memory: 2Gi
  {{- include "weir.containerSecurity" . | nindent 2 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: model
      mountPath: /models
{{- end -}}
{{- end -}}
