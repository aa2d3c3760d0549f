"""vLLM by gRPC, `vllm.grpc.engine.VllmEngine`: its requests, responses and errors."""
