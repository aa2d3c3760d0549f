{{/* Mutual TLS between the services. */}}

{{/* Port of the plaintext health service: the kubelet's gRPC probes do not support TLS. */}}
{{- define "weir.tlsHealthPort" -}}50050{{- end -}}

{{/* Port of the gRPC probes. Takes (dict "root" $ "values" …). */}}
{{- define "weir.healthPort" -}}
{{- if .root.Values.tls.enabled }}{{ include "weir.tlsHealthPort" . }}{{ else }}{{ int .values.port }}{{ end -}}
{{- end -}}

{{/* Secret with the certificate of a component. Takes (dict "root" $ "component" …). */}}
{{- define "weir.tlsSecret" -}}
{{- $own := printf "%s-%s-tls" (include "weir.fullname" .root) .component -}}
{{- ternary $own .root.Values.tls.existingSecret .root.Values.tls.certManager.enabled -}}
{{- end -}}

{{/* Variables that name the certificate files. Takes the prefix of the service's variables. */}}
{{- define "weir.tlsEnv" -}}
- name: {{ . }}_TLS_CERTIFICATE
  value: /etc/weir/tls/tls.crt
- name: {{ . }}_TLS_PRIVATE_KEY
  value: /etc/weir/tls/tls.key
- name: {{ . }}_TLS_CA
  value: /etc/weir/tls/ca.crt
{{- end -}}

{{/* All DNS names of a component's Services, as JSON {"names": […]}. */}}
{{- define "weir.tlsNames" -}}
{{- $scope := . -}}
{{- $services := list -}}
{{- if has .component (list "tokenizer" "inference") -}}
{{- range get (include "weir.models" .root | fromJson) (ternary "weir" "tokenizers" (eq .component "inference")) -}}
{{- $services = append $services (include "weir.componentName" (dict "root" $scope.root "component" $scope.component "slug" .slug)) -}}
{{- end -}}
{{- else -}}
{{- $services = append $services (include "weir.componentName" .) -}}
{{- if eq .component "gateway" }}{{ $services = append $services (include "weir.gatewayPeersName" .root) }}{{ end -}}
{{- end -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $names := list -}}
{{- range $services -}}
{{- $names = concat $names (list . (printf "%s.%s" . $namespace) (printf "%s.%s.svc" . $namespace) (printf "%s.%s.svc.cluster.local" . $namespace)) -}}
{{- end -}}
{{- dict "names" $names | toJson -}}
{{- end -}}
