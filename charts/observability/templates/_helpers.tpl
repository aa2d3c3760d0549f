{{/* metadata of an object. Takes (dict "root" $ "name" … "component" …). */}}
{{- define "observability.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "observability.labels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* Labels for selectors, which are immutable. */}}
{{- define "observability.labels" -}}
app.kubernetes.io/name: observability
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Reference of an image. Takes (dict "root" $ "image" …). */}}
{{- define "observability.image" -}}
{{- $registry := .root.Values.imageRegistry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end }}{{ .image.repository }}:{{ .image.tag }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Service account token, pull secrets and securityContext of a pod.
     Takes (dict "root" $ "user" UID "token" bool). */}}
{{- define "observability.podSecurity" -}}
automountServiceAccountToken: {{ .token }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* securityContext of a container. */}}
{{- define "observability.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}
