{{/* Parts of the pods: replicas, image, security, scheduling, probes and termination. */}}

{{/* The `pod` section of the values with a component's overrides, as JSON. Takes (dict "root" $ "values" …). */}}
{{- define "weir.pod" -}}
{{- $pod := deepCopy .root.Values.pod -}}
{{- include "weir.override" (dict "into" $pod "from" (default dict .values.pod)) -}}
{{- $pod | toJson -}}
{{- end -}}

{{/*
`replicas` of a Deployment. With autoscaling the autoscaler sets the number. An upgrade repeats the
present number, because Kubernetes resets to 1 a field that an earlier release had set and this one
leaves out. Takes (dict "root" $ "component" … "slug" … "values" …).
*/}}
{{- define "weir.replicas" -}}
{{- if not .values.autoscaling.enabled -}}
replicas: {{ int .values.replicas }}
{{- else -}}
{{- $minimum := int .values.autoscaling.minReplicas -}}
{{- with lookup "apps/v1" "Deployment" .root.Release.Namespace (include "weir.componentName" .) -}}
replicas: {{ max (int .spec.replicas) $minimum }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An integer, or a percentage as a string. */}}
{{- define "weir.intOrPercent" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ int . }}{{ end -}}
{{- end -}}

{{/* Annotations of a pod. Takes (dict "root" $ "component" … "pod" … "metricsPort" …). */}}
{{- define "weir.podAnnotations" -}}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" .component -}}
{{- if .root.Values.metrics.podAnnotations -}}
{{- $_ := set $annotations "prometheus.io/scrape" "true" -}}
{{- $_ := set $annotations "prometheus.io/port" (toString (int .metricsPort)) -}}
{{- $_ := set $annotations "prometheus.io/path" "/metrics" -}}
{{- end -}}
{{- merge (deepCopy .pod.annotations) $annotations (include "weir.meshAnnotations" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* Reference of an image. Takes (dict "root" $ "image" … "gpu" …); "gpu" selects the CUDA variant. */}}
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

{{/* `resources` of the engine, with its GPUs. Takes the `inference` section. */}}
{{- define "weir.gpuResources" -}}
{{- $resources := deepCopy .resources -}}
{{- if int .gpu.count -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits .gpu.resourceName (toString (int .gpu.count)) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* securityContext of a pod, of the Pod Security Standard "restricted". Takes the pod values. */}}
{{- define "weir.podSecurityContext" -}}
runAsNonRoot: true
{{- with int .runAsUser }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* securityContext of a container, of the same standard. */}}
{{- define "weir.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Image pull secrets, priority and runtime class, and placement on nodes; may be empty.
     Takes (dict "root" $ "component" … "slug" … "pod" …). */}}
{{- define "weir.scheduling" -}}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with include "weir.priorityClassName" . }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or .pod.topologySpread .pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- if .pod.topologySpread }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "weir.selectorLabels" $ | nindent 8 }}
    # Counts the pods of the present ReplicaSet only, not those that a rollout removes.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
  {{- with .pod.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "weir.priorityClassName" -}}
{{- if .pod.priorityClassName -}}{{ .pod.priorityClassName }}
{{- else if .root.Values.priorityClass.create -}}{{ printf "%s-%s" .root.Release.Namespace (include "weir.fullname" .root) }}
{{- end -}}
{{- end -}}

{{/* Times of the startup probe: a pod has `startupSeconds` to start. Takes a component's values. */}}
{{- define "weir.startupProbeTimes" -}}
periodSeconds: 2
timeoutSeconds: 2
failureThreshold: {{ div (add (int .startupSeconds) 1) 2 }}
{{- end -}}

{{/* Times of the readiness probe. Takes the pod values. */}}
{{- define "weir.readinessProbeTimes" -}}
periodSeconds: {{ int .probePeriodSeconds }}
timeoutSeconds: {{ int .probeTimeoutSeconds }}
failureThreshold: {{ int .probeFailureThreshold }}
{{- end -}}

{{/* Times of the liveness probe: it fails six times later than readiness, so that a pod that is only
     busy is not restarted. Takes the pod values. */}}
{{- define "weir.livenessProbeTimes" -}}
periodSeconds: {{ mul 2 (int .probePeriodSeconds) }}
timeoutSeconds: {{ int .probeTimeoutSeconds }}
failureThreshold: {{ mul 3 (int .probeFailureThreshold) }}
{{- end -}}

{{/*
Seconds that the preStop hook sleeps, so that endpoints and DNS drop the pod before SIGTERM: by
default a sixth of the drain time, 1 to 10.
*/}}
{{- define "weir.preStopSeconds" -}}
{{- $drain := int .Values.drain.seconds -}}
{{- $given := int .Values.drain.preStopSeconds -}}
{{- if $given -}}{{ $given }}
{{- else if $drain -}}{{ min 10 (max 1 (div $drain 6)) }}
{{- else -}}0
{{- end -}}
{{- end -}}

{{/* preStop, the drain time, and 10 seconds to abort requests, close connections and send spans. */}}
{{- define "weir.terminationGracePeriodSeconds" -}}
{{- add (int (include "weir.preStopSeconds" .)) (int .Values.drain.seconds) 10 -}}
{{- end -}}

{{/* Timeout of a proxy before the gateway, in seconds: longer than any request. */}}
{{- define "weir.proxyTimeoutSeconds" -}}
{{- add (ceil .Values.gateway.requestTimeoutSeconds) 10 -}}
{{- end -}}
