{{/* The Deployment of a service. Takes a dict of
     root, component, slug      which service, of which model
     values                     its section of the values
     env, ports, probes         YAML of its container
     mounts, volumes, init      YAML, may be empty */}}
{{- define "weir.deployment" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $pod := include "weir.pod" . | fromJson -}}
{{- $scope := dict "root" $root "component" .component "slug" .slug -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "weir.metadata" $scope | nindent 2 }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ int $values.replicas }}
  {{- else }}
  {{- /* The number is the autoscaler's. Where there is a Deployment its number is repeated: to
         leave the field out that an earlier release had would set it to 1 for a moment. */}}
  {{- with lookup "apps/v1" "Deployment" $root.Release.Namespace (include "weir.componentName" $scope) }}
  replicas: {{ max (int .spec.replicas) (int $values.autoscaling.minReplicas) }}
  {{- end }}
  {{- end }}
  revisionHistoryLimit: 3
  progressDeadlineSeconds: {{ add (int $values.startupSeconds) 300 }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: {{ include "weir.intOrPercent" $values.rollout.maxSurge }}
      maxUnavailable: {{ include "weir.intOrPercent" $values.rollout.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "weir.selectorLabels" $scope | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "weir.podLabels" $scope | nindent 8 }}
        {{- with $pod.labels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := dict "kubectl.kubernetes.io/default-container" .component }}
      {{- if $root.Values.metrics.podAnnotations }}
      {{- $port := ternary (int $values.port) (int (default 0 $values.metricsPort)) (eq .component "gateway") }}
      {{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString $port) "prometheus.io/path" "/metrics") }}
      {{- end }}
      annotations:
        {{- merge (deepCopy $pod.annotations) $annotations | toYaml | nindent 8 }}
    spec:
      {{- include "weir.podSpec" (merge (dict "pod" $pod) .) | nindent 6 }}
      containers:
        - name: {{ .component }}
          image: {{ include "weir.image" (dict "root" $root "image" $values.image "gpu" $values.gpu) | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          env:
            {{- .env | nindent 12 }}
            {{- include "weir.telemetryEnv" . | nindent 12 }}
            {{- with $pod.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- .ports | nindent 12 }}
          {{- .probes | nindent 10 }}
          {{- with include "weir.preStopSeconds" $root | int }}
          lifecycle:
            preStop:
              sleep:
                seconds: {{ . }}
          {{- end }}
          resources:
            {{- include "weir.resources" $values | nindent 12 }}
          {{- include "weir.containerSecurity" . | nindent 10 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- if $root.Values.tls.enabled }}
            - name: tls
              mountPath: /etc/weir/tls
              readOnly: true
            {{- end }}
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $pod.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      {{- with .init }}
      initContainers:
        {{- . | nindent 8 }}
      {{- end }}
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: {{ $pod.tmpSize }}
        {{- if $root.Values.tls.enabled }}
        - name: tls
          secret:
            secretName: {{ include "weir.tlsSecret" . }}
            defaultMode: 0440
        {{- end }}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $pod.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end -}}

{{/* A pod's spec but for containers and volumes: where and as whom it runs. */}}
{{- define "weir.podSpec" -}}
{{- $root := .root -}}
{{- $pod := .pod -}}
{{- $scope := dict "root" $root "component" .component "slug" .slug -}}
serviceAccountName: {{ include "weir.serviceAccountName" . }}
automountServiceAccountToken: false
# Without the addresses of all Services in the environment, where they could pass for settings.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "weir.terminationGracePeriodSeconds" $root }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int $pod.runAsUser }}
  runAsGroup: {{ int $pod.runAsUser }}
  fsGroup: {{ int $pod.runAsUser }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with include "weir.priorityClassName" . }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or $pod.topologySpread $pod.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- if $pod.topologySpread }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "weir.selectorLabels" $scope | nindent 8 }}
    # Of this rollout only, so that pods that leave do not count.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
  {{- with $pod.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "weir.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* `resources`, with the GPUs where there are any. */}}
{{- define "weir.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu -}}
{{- if int .gpu.count -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits .gpu.resourceName (toString (int .gpu.count)) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "weir.intOrPercent" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ int . }}{{ end -}}
{{- end -}}
