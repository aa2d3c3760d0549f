# Grafana's data sources, with links between them: an exemplar opens its trace, and a span opens the
# metrics of its pod at that time, and its log lines.
apiVersion: 1
datasources:
  - name: Prometheus
    uid: prometheus
    type: prometheus
    access: proxy
    url: http://prometheus:9090
    isDefault: true
    jsonData:
      httpMethod: POST
      exemplarTraceIdDestinations:
        - name: trace_id
          datasourceUid: tempo
        - name: traceID
          datasourceUid: tempo
  - name: Tempo
    uid: tempo
    type: tempo
    access: proxy
    url: http://tempo:3200
    jsonData:
      serviceMap:
        datasourceUid: prometheus
      nodeGraph:
        enabled: true
      tracesToMetrics:
        datasourceUid: prometheus
        spanStartTimeShift: -5m
        spanEndTimeShift: 5m
        # Attributes of a span, and the labels that Prometheus gives to the series of its pod.
        tags:
          - key: k8s.namespace.name
            value: namespace
          - key: k8s.pod.name
            value: pod
        queries:
          - name: Event loop lag of this pod, p99
            query: histogram_quantile(0.99, sum by (le) (rate(mesh_event_loop_lag_seconds_bucket{$$__tags}[1m])))
          - name: CPU of this pod
            query: sum(rate(process_cpu_seconds_total{$$__tags}[1m]))
          - name: Time to first token, p95, if this is a gateway
            query: histogram_quantile(0.95, sum by (le) (rate(gen_ai_server_time_to_first_token_seconds_bucket{$$__tags}[1m])))
          - name: Inter-token latency, p99, if this is an engine
            query: histogram_quantile(0.99, sum by (le) (rate(vllm:inter_token_latency_seconds_bucket{$$__tags}[1m])))
          - name: Sequences running and waiting, if this is an engine
            query: sum(vllm:num_requests_running{$$__tags}) + sum(vllm:num_requests_waiting{$$__tags})
          - name: KV cache usage, if this is an engine
            query: avg(vllm:kv_cache_usage_perc{$$__tags})
{{- if .Values.loki.enabled }}
      tracesToLogsV2:
        datasourceUid: loki
        spanStartTimeShift: -1m
        spanEndTimeShift: 1m
        tags:
          - key: k8s.namespace.name
            value: namespace
          - key: k8s.pod.name
            value: pod
        customQuery: true
        query: '{$${__tags}} | json | trace_id = "$${__trace.traceId}"'
  - name: Loki
    uid: loki
    type: loki
    access: proxy
    url: http://loki:3100
    jsonData:
      derivedFields:
        - name: trace_id
          matcherRegex: '"trace_id": ?"([0-9a-f]{32})"'
          url: $${__value.raw}
          datasourceUid: tempo
          urlDisplayLabel: Trace
{{- end }}
