{{/* vLLM engines: their ports, arguments and pods. */}}

{{/* Port of vLLM. Takes the `vllm` section. */}}
{{- define "weir.vllmPort" -}}
{{- if int .port }}{{ int .port }}{{ else }}{{ ternary 50051 8000 (eq .protocol "grpc") }}{{ end -}}
{{- end -}}

{{/* GPUs that share each layer, and stages of layers. Take the `vllm` section. */}}
{{- define "weir.vllmTensorParallel" -}}
{{- if int .tensorParallelSize }}{{ int .tensorParallelSize }}{{ else }}{{ max 1 (int .gpu.count) }}{{ end -}}
{{- end -}}

{{- define "weir.vllmPipelineParallel" -}}
{{- if int .pipelineParallelSize }}{{ int .pipelineParallelSize }}{{ else }}{{ int .nodes }}{{ end -}}
{{- end -}}

{{/*
Seconds that the preStop hook sleeps. With HTTP vLLM itself waits for running requests after SIGTERM
(--shutdown-timeout); with gRPC for 5 s only, so the hook takes the drain time too.
*/}}
{{- define "weir.vllmPreStopSeconds" -}}
{{- $preStop := int (include "weir.preStopSeconds" .root) -}}
{{- if and (eq .model.vllm.protocol "http") (eq (int .model.vllm.nodes) 1) -}}{{ $preStop }}
{{- else -}}{{ add $preStop (int .root.Values.drain.seconds) }}
{{- end -}}
{{- end -}}

{{/* Arguments of `vllm serve` that all pods of an engine share. Takes (dict "root" $ "model" …). */}}
{{- define "weir.vllmArgs" -}}
{{- $vllm := .model.vllm -}}
- {{ include "weir.modelPath" .model }}
- --served-model-name={{ .model.name }}
- --tensor-parallel-size={{ include "weir.vllmTensorParallel" $vllm }}
- --pipeline-parallel-size={{ include "weir.vllmPipelineParallel" $vllm }}
{{- if int $vllm.gpu.count }}
- --gpu-memory-utilization={{ $vllm.gpuMemoryUtilization | toString }}
{{- end }}
{{- with int $vllm.maxModelLen }}
- --max-model-len={{ . }}
{{- end }}
{{- with int $vllm.maxNumSeqs }}
- --max-num-seqs={{ . }}
{{- end }}
{{- with int $vllm.maxNumWaiting }}
- --max-num-queued-reqs={{ . }}
{{- end }}
{{- with .root.Values.telemetry.endpoint }}
- --otlp-traces-endpoint={{ . }}
{{- end }}
{{- range $vllm.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Arguments of the pod that serves: protocol, address and drain. Takes the same. */}}
{{- define "weir.vllmServeArgs" -}}
{{- $vllm := .model.vllm -}}
{{- $host := .root.Values.listenHost -}}
{{- if eq $vllm.protocol "grpc" -}}
- --grpc
- {{ printf "--host=%s" $host | quote }}
{{- else -}}
- {{ printf "--host=%s" (trimAll "[]" $host) | quote }}
- --shutdown-timeout={{ int .root.Values.drain.seconds }}
{{- end }}
- --port={{ include "weir.vllmPort" $vllm }}
{{- end -}}

{{/*
Variables of vLLM. The root file system is read-only, so all caches are below /tmp; the user of the
pod has no entry in /etc/passwd, so its name is given. Takes (dict "root" $ "pod" …).
*/}}
{{- define "weir.vllmEnv" -}}
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
- name: USER
  value: weir
- name: LOGNAME
  value: weir
- name: XDG_CACHE_HOME
  value: /tmp/cache
- name: VLLM_CACHE_ROOT
  value: /tmp/cache/vllm
- name: VLLM_CONFIG_ROOT
  value: /tmp/config/vllm
- name: TRITON_CACHE_DIR
  value: /tmp/cache/triton
- name: TORCHINDUCTOR_CACHE_DIR
  value: /tmp/cache/inductor
- name: HF_HUB_OFFLINE
  value: "1"
- name: VLLM_NO_USAGE_STATS
  value: "1"
- name: VLLM_LOGGING_LEVEL
  value: {{ .root.Values.log.level }}
{{- if .root.Values.telemetry.endpoint }}
- name: OTEL_SERVICE_NAME
  value: vllm
{{- end }}
{{- with .pod.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Reference of vLLM's image. Takes (dict "root" $ "image" …). */}}
{{- define "weir.vllmImage" -}}
{{- with default .image.registry .root.Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .image.repository }}:{{ .image.tag }}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Probes of the pod that serves. Health fails when the engine's processes have died, although the
     server still runs. Takes (dict "model" … "pod" …). */}}
{{- define "weir.vllmProbes" -}}
{{- $vllm := .model.vllm -}}
{{- $times := dict "startupProbe" (include "weir.startupProbeTimes" $vllm) "readinessProbe" (include "weir.readinessProbeTimes" .pod) "livenessProbe" (include "weir.livenessProbeTimes" .pod) -}}
{{- range $probe := list "startupProbe" "readinessProbe" "livenessProbe" }}
{{ $probe }}:
  {{- if eq $vllm.protocol "grpc" }}
  grpc:
    port: {{ include "weir.vllmPort" $vllm }}
    service: vllm.grpc.engine.VllmEngine
  {{- else }}
  httpGet:
    path: /health
    port: http
  {{- end }}
  {{- get $times $probe | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
The spec of a vLLM pod. Takes (dict "root" $ "model" … "pod" … "component" … "slug" … "role" …);
"role" is leader for the pod that serves, or worker for the other pods of an engine on several nodes.
*/}}
{{- define "weir.vllmPodSpec" -}}
{{- $model := .model -}}
{{- $vllm := $model.vllm -}}
{{- $root := .root -}}
serviceAccountName: {{ include "weir.serviceAccountName" (dict "root" $root "component" "vllm" "pod" .pod) }}
automountServiceAccountToken: false
enableServiceLinks: false # vLLM would take VLLM_PORT of a Service for its own variable
terminationGracePeriodSeconds: {{ include "weir.terminationGracePeriodSeconds" $root }}
securityContext:
  {{- include "weir.podSecurityContext" .pod | nindent 2 }}
{{- include "weir.scheduling" . | nindent 0 }}
{{- if eq $model.source "hub" }}
initContainers:
  {{- include "weir.downloadContainer" (dict "root" $root "model" $model "image" $root.Values.tokenizer.image "pod" .pod "what" "model") | nindent 2 }}
{{- end }}
containers:
  - name: vllm
    image: {{ include "weir.vllmImage" (dict "root" $root "image" $vllm.image) | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [vllm, serve]
    args:
      {{- include "weir.vllmArgs" . | nindent 6 }}
      {{- if gt (int $vllm.nodes) 1 }}
      # The LeaderWorkerSet controller sets these variables.
      - --nnodes=$(LWS_GROUP_SIZE)
      - --node-rank=$(LWS_WORKER_INDEX)
      - --master-addr=$(LWS_LEADER_ADDRESS)
      {{- end }}
      {{- if eq .role "leader" }}
      {{- include "weir.vllmServeArgs" . | nindent 6 }}
      {{- else }}
      - --headless
      {{- end }}
    env:
      {{- include "weir.vllmEnv" . | nindent 6 }}
    {{- if eq .role "leader" }}
    ports:
      - name: {{ $vllm.protocol }}
        containerPort: {{ include "weir.vllmPort" $vllm }}
    {{- include "weir.vllmProbes" . | nindent 4 }}
    {{- end }}
    {{- with include "weir.vllmPreStopSeconds" . | int }}
    lifecycle:
      preStop:
        sleep:
          seconds: {{ . }}
    {{- end }}
    resources:
      {{- include "weir.gpuResources" $vllm | nindent 6 }}
    securityContext:
      {{- include "weir.containerSecurityContext" $root | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      - name: model
        mountPath: /models
        readOnly: true
      {{- if $vllm.sharedMemory }}
      - name: shm
        mountPath: /dev/shm
      {{- end }}
      {{- with .pod.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: {{ .pod.tmpSize }}
  - name: model
    persistentVolumeClaim:
      {{- if eq $model.source "pvc" }}
      claimName: {{ $model.pvc.claim }}
      readOnly: true
      {{- else }}
      claimName: {{ include "weir.modelClaim" (dict "root" $root "model" $model) }}
      {{- end }}
  {{- with $vllm.sharedMemory }}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ . }}
  {{- end }}
  {{- if eq $model.source "hub" }}
  {{- with include "weir.caBundleVolume" $root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with .pod.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Annotations of a vLLM pod; only HTTP has metrics. Takes the scope of the pod. */}}
{{- define "weir.vllmPodAnnotations" -}}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" "vllm" -}}
{{- if and .root.Values.metrics.podAnnotations (eq .role "leader") (eq .model.vllm.protocol "http") -}}
{{- $_ := set $annotations "prometheus.io/scrape" "true" -}}
{{- $_ := set $annotations "prometheus.io/port" (include "weir.vllmPort" .model.vllm) -}}
{{- $_ := set $annotations "prometheus.io/path" "/metrics" -}}
{{- end -}}
{{- merge (deepCopy .pod.annotations) $annotations (include "weir.meshAnnotations" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* Egress of a vLLM pod: to the other pods of its engine, the hub and the collector.
     Takes (dict "root" $ "model" … "peer" …). */}}
{{- define "weir.vllmEgress" -}}
{{- include "weir.dnsEgress" .root }}
{{- if gt (int .model.vllm.nodes) 1 }}
- to:
    {{- include "weir.peer" .peer | nindent 4 }}
{{- end }}
{{- if eq .model.source "hub" }}
{{ include "weir.hubEgress" .root }}
{{- with include "weir.proxyEgress" .root }}
{{ . }}
{{- end }}
{{- end }}
{{- if .root.Values.telemetry.endpoint }}
{{ include "weir.otlpEgress" .root }}
{{- end }}
{{- end -}}
