{{/* The Service of a gRPC service: headless, because a client has a connection to every pod and
     chooses itself. Takes (dict "root" $ "component" … "slug" … "values" …). */}}
{{- define "weir.headlessService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "weir.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "weir.selectorLabels" . | nindent 4 }}
  ports:
    # A headless Service does not translate ports: these are the container's.
    - name: grpc
      port: {{ int .values.port }}
      targetPort: grpc
      appProtocol: {{ ternary "https" "kubernetes.io/h2c" .root.Values.tls.enabled }}
    - name: metrics
      port: {{ int .values.metricsPort }}
      targetPort: metrics
      appProtocol: http
{{- end -}}

{{/* Takes (dict "root" $ "component" … "values" …). */}}
{{- define "weir.serviceAccount" -}}
{{- $pod := include "weir.pod" . | fromJson -}}
{{- if not $pod.serviceAccountName -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "weir.metadata" (merge (dict "annotations" $pod.serviceAccountAnnotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/* Takes the same dict. */}}
{{- define "weir.podDisruptionBudget" -}}
{{- $budget := .values.podDisruptionBudget -}}
{{- if $budget.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "weir.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ include "weir.intOrPercent" $budget.maxUnavailable }}
  # A pod that is not ready serves nobody, and must not hold up a node's drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "weir.selectorLabels" . | nindent 6 }}
{{- end -}}
{{- end -}}
