{{/* Constraints between values, which a JSON schema cannot express. Outputs one message a line;
     each says how to fix the values. */}}
{{- define "weir.mistakes" -}}
{{- $values := .Values -}}
{{- if semverCompare "<3.14.0-0" .Capabilities.HelmVersion.Version }}
Helm {{ .Capabilities.HelmVersion.Version }} could install this chart but not upgrade it: use Helm 3.14 or newer
{{- end }}
{{- include "weir.mistakes.models" . -}}
{{- include "weir.mistakes.scaling" . -}}
{{- include "weir.mistakes.crds" . -}}
{{- with $values.orchestrator }}
{{- if and (eq .index.source "pvc") (not .index.existingClaim) }}
orchestrator.index.source is pvc: set orchestrator.index.existingClaim to the claim that holds the index
{{- end }}
{{- end }}
{{- include "weir.mistakes.searchModels" $values.orchestrator -}}
{{- with $values.tls }}
{{- if and .enabled .existingSecret .certManager.enabled }}
tls.existingSecret and tls.certManager.enabled are both set: choose where the certificates come from, and clear the other
{{- else if and .enabled (not .existingSecret) (not .certManager.enabled) }}
tls.enabled needs certificates: set tls.existingSecret, or tls.certManager.enabled with tls.certManager.issuerRef.name
{{- else if and .enabled .certManager.enabled (not .certManager.issuerRef.name) }}
tls.certManager.enabled needs tls.certManager.issuerRef.name: the name of an issuer with a CA
{{- else if and (not .enabled) (or .existingSecret .certManager.enabled) }}
certificates are set but tls.enabled is false: set it to true, or clear tls.existingSecret and tls.certManager.enabled
{{- end }}
{{- end }}
{{- if and (eq $values.ipFamilies.policy "SingleStack") (gt (len $values.ipFamilies.families) 1) }}
ipFamilies.policy is SingleStack but ipFamilies.families has two: list one, or choose a dual-stack policy
{{- end }}
{{- with $values.gateway }}
{{- if and .ingress.enabled (not .ingress.hosts) }}
gateway.ingress.enabled needs gateway.ingress.hosts: list at least one host name
{{- end }}
{{- $exposures := list }}
{{- if .ingress.enabled }}{{ $exposures = append $exposures "gateway.ingress" }}{{ end }}
{{- if .httpRoute.enabled }}{{ $exposures = append $exposures "gateway.httpRoute" }}{{ end }}
{{- if ne .service.type "ClusterIP" }}{{ $exposures = append $exposures (printf "gateway.service.type %s" .service.type) }}{{ end }}
{{- if not .apiKeys.existingSecret }}
{{- if eq .allowAnonymous "never" }}
gateway.allowAnonymous is never: set gateway.apiKeys.existingSecret to a secret with a key file
{{- else if and $exposures (eq .allowAnonymous "inside") }}
{{ join " and " $exposures }} give clients outside the cluster access without a key: set gateway.apiKeys.existingSecret, or gateway.allowAnonymous to always if something else authenticates clients
{{- end }}
{{- else if and $values.tests.enabled (not $values.tests.apiKey.existingSecret) }}
gateway.apiKeys is set and `helm test` has no key: set tests.apiKey.existingSecret to a secret with a key, or tests.enabled to false
{{- end }}
{{- if and .httpRoute.enabled .tls.existingSecret }}
gateway.httpRoute and gateway.tls are both set, but an HTTPRoute sends plain HTTP to its backend: terminate TLS at the Gateway, and clear gateway.tls.existingSecret
{{- end }}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) }}
gateway.httpRoute.enabled needs gateway.httpRoute.parentRefs: list the Gateway that it attaches to
{{- end }}
{{- if and (int .service.nodePort) (ne .service.type "NodePort") }}
gateway.service.nodePort is set but gateway.service.type is {{ .service.type }}: set the type to NodePort, or nodePort to 0
{{- end }}
{{- end }}
{{- if and $values.telemetry.queryUrl (not $values.telemetry.endpoint) }}
telemetry.queryUrl is set but telemetry.endpoint is not: set where traces are sent, or clear queryUrl
{{- end }}
{{- if and $values.networkPolicy.enabled (not $values.networkPolicy.metricsFrom) (or $values.metrics.serviceMonitor.enabled (eq $values.autoscaling.engine "keda")) }}
metrics are enabled but networkPolicy.metricsFrom permits no scraper: list Prometheus there, such as - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}
{{- end }}
{{- end -}}

{{- define "weir.mistakes.models" -}}
{{- $orchestrator := .Values.orchestrator -}}
{{- $names := list -}}
{{- $slugs := list -}}
{{- $owners := list -}}
{{- $models := (include "weir.models" . | fromJson).models -}}
{{- range $models -}}
{{- if not .tokenizer }}{{ $owners = append $owners .name }}{{ end -}}
{{- end -}}
{{- range $index, $model := $models }}
{{- $path := printf "models[%d] (%s)" $index .name }}
{{- if has .name $names }}
{{ $path }}: the name is used twice; give each model a unique name
{{- else if has .slug $slugs }}
{{ $path }}: in object names it becomes {{ .slug }}, which another model has; use names that differ in their first 20 characters
{{- end }}
{{- $names = append $names .name }}
{{- $slugs = append $slugs .slug }}
{{- if and (eq .source "hub") (not .hub.id) }}
{{ $path }}: source is hub; set hub.id to the model to download, such as Qwen/Qwen3-0.6B
{{- end }}
{{- if and (eq .source "pvc") (not .pvc.claim) }}
{{ $path }}: source is pvc; set pvc.claim to the claim that holds the model
{{- end }}
{{- if and .tokenizer (not (has .tokenizer $owners)) }}
{{ $path }}: tokenizer is {{ .tokenizer }}, but no model of that name has its own tokenizer (those that have: {{ join ", " $owners }})
{{- end }}
{{- $many := or (gt (int .inference.replicas) 1) (and .inference.autoscaling.enabled (gt (int .inference.autoscaling.maxReplicas) 1)) }}
{{- if eq .engine "vllm" }}{{ $many = or (gt (int .vllm.replicas) 1) (gt (int .vllm.nodes) 1) }}{{ end }}
{{- if and (ne .engine "external") (eq .source "hub") (eq .hub.accessMode "ReadWriteOnce") $many }}
{{ $path }}: several replicas cannot share a ReadWriteOnce volume; set hub.accessMode to ReadWriteMany (and a storage class that supports it), or use one replica
{{- end }}
{{- if and (eq .engine "vllm") (has .source (list "demo" "package")) }}
{{ $path }}: engine is vllm, whose image does not contain the model of source {{ .source }}; set source to hub or pvc
{{- end }}
{{- if and (eq .engine "external") (eq .source "demo") (not .tokenizer) (not $orchestrator.tokenizerAddress) }}
{{ $path }}: engine is external, but the source of its tokenizer is demo; set source to hub or pvc, tokenizer to a model with the same tokenizer, or orchestrator.tokenizerAddress
{{- end }}
{{- if and (eq .engine "external") (not .external.addresses) }}
{{ $path }}: engine is external; set external.addresses to the engines
{{- end }}
{{- if and (ne .engine "external") .external.addresses }}
{{ $path }}: external.addresses is set but engine is {{ .engine }}; set engine to external, or clear the addresses
{{- end }}
{{- if and (ne .engine "external") .inferencePool.enabled }}
{{- if not .inferencePool.endpointPicker.name }}
{{ $path }}: inferencePool.enabled needs inferencePool.endpointPicker.name: the Service of the endpoint picker
{{- end }}
{{- if and $.Values.tls.enabled (eq .engine "weir") }}
{{ $path }}: inferencePool and tls are both enabled, but a Gateway sends plaintext HTTP/2 to the engines; disable one of them
{{- end }}
{{- if and $.Values.networkPolicy.enabled (not $.Values.networkPolicy.inferencePoolFrom) }}
{{ $path }}: inferencePool is enabled but networkPolicy.inferencePoolFrom permits no caller: list the Gateway's proxies and the endpoint picker there
{{- end }}
{{- end }}
{{- if eq .engine "vllm" }}
{{- include "weir.mistakes.rollout" (dict "path" (printf "%s: vllm" $path) "values" .vllm) }}
{{- $parallel := mul (include "weir.vllmTensorParallel" .vllm | int) (include "weir.vllmPipelineParallel" .vllm | int) }}
{{- $gpus := mul (int .vllm.gpu.count) (int .vllm.nodes) }}
{{- if and $gpus (ne $parallel $gpus) }}
{{ $path }}: vllm.tensorParallelSize × pipelineParallelSize is {{ $parallel }}, but vllm.gpu.count × nodes is {{ $gpus }}; make them equal
{{- end }}
{{- else if eq .engine "weir" }}
{{- if and (eq .inference.device "cuda") (not (int .inference.gpu.count)) }}
{{ $path }}: inference.device is cuda; set inference.gpu.count, or the pod gets no GPU
{{- end }}
{{- if and (eq .inference.device "cpu") (int .inference.gpu.count) }}
{{ $path }}: inference.device is cpu but inference.gpu.count is {{ int .inference.gpu.count }}: the GPUs would be unused; change one of the two
{{- end }}
{{- include "weir.mistakes.autoscaling" (dict "root" $ "path" (printf "%s: inference" $path) "component" "inference" "values" .inference) }}
{{- include "weir.mistakes.rollout" (dict "path" (printf "%s: inference" $path) "values" .inference) }}
{{- end }}
{{- end }}
{{- with $orchestrator.embedding }}
{{- if and .model (not .url) $models (not (has .model $names)) }}
orchestrator.embedding.model is {{ .model }}, but models has {{ join ", " $names }}: name one of them, or set orchestrator.embedding.url to the server of the encoder
{{- end }}
{{- end }}
{{- with $orchestrator.rerank }}
{{- if and .model (not .url) $models (not (has .model $names)) }}
orchestrator.rerank.model is {{ .model }}, but models has {{ join ", " $names }}: name one of them, or set orchestrator.rerank.url to the server of the reranker
{{- end }}
{{- end }}
{{- with $orchestrator.searchModel }}
{{- if and $models (not (has . $names)) }}
orchestrator.searchModel is {{ . }}, but models has {{ join ", " $names }}: name one of them
{{- end }}
{{- end }}
{{- if and (not $models) (not (and $orchestrator.tokenizerAddress $orchestrator.inferenceAddress)) }}
models is empty: list a model, or set orchestrator.tokenizerAddress and orchestrator.inferenceAddress to external services
{{- end }}
{{- end -}}

{{- define "weir.mistakes.scaling" -}}
{{- range $component := list "gateway" "orchestrator" "tokenizer" }}
{{- $scope := dict "root" $ "path" $component "component" $component "values" (get $.Values $component) }}
{{- include "weir.mistakes.autoscaling" $scope }}
{{- include "weir.mistakes.rollout" $scope }}
{{- end }}
{{- if and (eq .Values.autoscaling.engine "keda") (not .Values.autoscaling.prometheusAddress) }}
autoscaling.engine is keda: set autoscaling.prometheusAddress to the Prometheus that KEDA queries
{{- end }}
{{- end -}}

{{/* Takes (dict "root" $ "path" … "component" … "values" …). */}}
{{- define "weir.mistakes.autoscaling" -}}
{{- $scaling := .values.autoscaling -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) }}
{{ .path }}.autoscaling: minReplicas {{ int $scaling.minReplicas }} is above maxReplicas {{ int $scaling.maxReplicas }}; lower minReplicas or raise maxReplicas
{{- end }}
{{- if and (not (int $scaling.minReplicas)) (ne .root.Values.autoscaling.engine "keda") }}
{{ .path }}.autoscaling.minReplicas is 0, but only KEDA scales to zero: set autoscaling.engine to keda
{{- end }}
{{- $requests := default dict .values.resources.requests }}
{{- if and $scaling.targetCPU (not (get $requests "cpu")) }}
{{ .path }}.autoscaling.targetCPU is a percentage of the CPU request: set {{ .path }}.resources.requests.cpu, or targetCPU to 0
{{- end }}
{{- $ours := or (eq .root.Values.autoscaling.engine "keda") .root.Values.autoscaling.customMetrics }}
{{- $pods := or $scaling.targetInFlight $scaling.targetWaiting $scaling.targetWaitingTokens $scaling.targetKvUsage }}
{{- if not (or $scaling.targetCPU (and $ours $pods)) }}
{{ .path }}.autoscaling has no metric to scale on: set a target other than 0; targets of the pods' own metrics need autoscaling.engine keda, or autoscaling.customMetrics and an adapter
{{- end }}
{{- end -}}
{{- end -}}

{{/* Takes (dict "path" … "values" …). */}}
{{- define "weir.mistakes.rollout" -}}
{{- $rollout := .values.rollout -}}
{{- if and (has (toString $rollout.maxSurge) (list "0" "0%")) (has (toString $rollout.maxUnavailable) (list "0" "0%")) }}
{{ .path }}.rollout: maxSurge and maxUnavailable are both 0, so a rollout cannot replace any pod; set one of them to 1
{{- end }}
{{- end -}}

{{/*
Kinds that the values ask for and the cluster does not have. `helm template` knows no cluster: there
the list of API versions lacks apiregistration.k8s.io, which every cluster has.
*/}}
{{- define "weir.mistakes.crds" -}}
{{- if .Capabilities.APIVersions.Has "apiregistration.k8s.io/v1" }}
{{- $values := .Values }}
{{- $scaled := false }}
{{- range list $values.gateway $values.orchestrator $values.tokenizer }}
{{- if .autoscaling.enabled }}{{ $scaled = true }}{{ end }}
{{- end }}
{{- $needs := list
  (list $values.metrics.serviceMonitor.enabled "monitoring.coreos.com/v1/ServiceMonitor" "metrics.serviceMonitor.enabled" "the Prometheus operator")
  (list $values.metrics.prometheusRule.enabled "monitoring.coreos.com/v1/PrometheusRule" "metrics.prometheusRule.enabled" "the Prometheus operator")
  (list $values.gateway.httpRoute.enabled "gateway.networking.k8s.io/v1/HTTPRoute" "gateway.httpRoute.enabled" "the Gateway API")
  (list (and $values.tls.enabled $values.tls.certManager.enabled) "cert-manager.io/v1/Certificate" "tls.certManager.enabled" "cert-manager")
}}
{{- range $index, $model := (include "weir.models" . | fromJson).models }}
{{- $path := printf "models[%d] (%s)" $index .name }}
{{- if and (eq .engine "weir") .inference.autoscaling.enabled }}{{ $scaled = true }}{{ end }}
{{- if eq .engine "vllm" }}
{{- $needs = append $needs (list (gt (int .vllm.nodes) 1) "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet" (printf "%s: vllm.nodes above 1" $path) "LeaderWorkerSet") }}
{{- end }}
{{- $pool := and .inferencePool.enabled (ne .engine "external") }}
{{- $needs = append $needs (list $pool "inference.networking.k8s.io/v1/InferencePool" (printf "%s: inferencePool.enabled" $path) "the Gateway API Inference Extension") }}
{{- end }}
{{- $keda := and $scaled (eq $values.autoscaling.engine "keda") }}
{{- $needs = append $needs (list $keda "keda.sh/v1alpha1/ScaledObject" "autoscaling.engine keda" "KEDA") }}
{{- range $needs }}
{{- if and (index . 0) (not ($.Capabilities.APIVersions.Has (index . 1))) }}
{{ index . 2 }} needs {{ index . 1 }}, which this cluster does not have: install {{ index . 3 }}, or change the value
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Mistakes in the encoder and the reranker. Argument: .Values.orchestrator */}}
{{- define "weir.mistakes.searchModels" -}}
{{- with .embedding }}
{{- if and (or .url .postgresColumn .opensearchField) (not .model) }}
orchestrator.embedding.model is empty, but url, postgresColumn or opensearchField is set: name the encoder, or clear them
{{- end }}
{{- if and .existingSecret (not .url) }}
orchestrator.embedding.existingSecret is set but url is not: set the URL of the server that needs the key, or clear existingSecret
{{- end }}
{{- end }}
{{- with .rerank }}
{{- if and .url (not .model) }}
orchestrator.rerank.url is set but orchestrator.rerank.model is not: name the model of the server
{{- else if and .existingSecret (not .url) }}
orchestrator.rerank.existingSecret is set but url is not: set the URL of the server that needs the key, or clear existingSecret
{{- end }}
{{- end }}
{{- end }}
