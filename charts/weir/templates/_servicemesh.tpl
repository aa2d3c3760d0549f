{{/* Service meshes and IP families. */}}

{{/*
Annotations for the mesh's sidecar, as YAML. The kubelet's probes bypass the mesh: Istio answers them in
the sidecar's stead, and the plaintext health port is not redirected. Takes (dict "root" $ …).
*/}}
{{- define "weir.meshAnnotations" -}}
{{- $health := ternary (include "weir.tlsHealthPort" .) "" .root.Values.tls.enabled -}}
{{- if eq .root.Values.serviceMesh.kind "istio" -}}
sidecar.istio.io/rewriteAppHTTPProbers: "true"
# The services call each other at their start, so the sidecar must run by then.
proxy.istio.io/config: |
  holdApplicationUntilProxyStarts: true
{{- with $health }}
traffic.sidecar.istio.io/excludeInboundPorts: {{ . | quote }}
{{- end }}
{{- else if eq .root.Values.serviceMesh.kind "linkerd" -}}
config.linkerd.io/proxy-await: enabled
{{- with $health }}
config.linkerd.io/skip-inbound-ports: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Namespace of the mesh's control plane. */}}
{{- define "weir.meshNamespace" -}}
{{- $mesh := .Values.serviceMesh -}}
{{- default (ternary "istio-system" "linkerd" (eq $mesh.kind "istio")) $mesh.namespace -}}
{{- end -}}

{{/* IP families of a Service; may be empty. */}}
{{- define "weir.ipFamilies" -}}
{{- with .Values.ipFamilies.policy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.ipFamilies.families }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
