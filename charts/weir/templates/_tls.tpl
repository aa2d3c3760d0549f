{{/* Mutual TLS between the services. */}}

{{/* The secret with a component's certificate. */}}
{{- define "weir.tlsSecret" -}}
{{- $own := printf "%s-%s-tls" (include "weir.fullname" .root) .component -}}
{{- ternary $own .root.Values.tls.existingSecret .root.Values.tls.certManager.enabled -}}
{{- end -}}

{{/* Takes (dict "root" $ "prefix" …). */}}
{{- define "weir.tlsEnv" -}}
{{- if .root.Values.tls.enabled }}
- name: {{ .prefix }}_TLS_CERTIFICATE
  value: /etc/weir/tls/tls.crt
- name: {{ .prefix }}_TLS_PRIVATE_KEY
  value: /etc/weir/tls/tls.key
- name: {{ .prefix }}_TLS_CA
  value: /etc/weir/tls/ca.crt
{{- if ne .prefix "GATEWAY" }}
- name: {{ .prefix }}_HEALTH_LISTEN
  value: {{ printf "%s:%d" .root.Values.listenHost 50050 | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Every name under which a component's Services are called, as JSON {"names": […]}. */}}
{{- define "weir.tlsNames" -}}
{{- $services := list -}}
{{- if has .component (list "tokenizer" "inference") -}}
{{- $component := .component -}}
{{- $root := .root -}}
{{- range (include "weir.models" .root | fromJson).models -}}
{{- $services = append $services (include "weir.componentName" (dict "root" $root "component" $component "slug" .slug)) -}}
{{- end -}}
{{- else -}}
{{- $services = append $services (include "weir.componentName" .) -}}
{{- end -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $names := list -}}
{{- range $services -}}
{{- $names = concat $names (list . (printf "%s.%s" . $namespace) (printf "%s.%s.svc" . $namespace) (printf "%s.%s.svc.cluster.local" . $namespace)) -}}
{{- end -}}
{{- dict "names" $names | toJson -}}
{{- end -}}
