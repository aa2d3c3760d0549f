"""Parts of benchmarks/gpu.py. Those that use the device run in separate processes:

python -m benchmarks.accelerator.probe DEVICE BUFFER_MIB MATRIX_SIZE
python -m benchmarks.accelerator.weir WORKLOAD DTYPE
python -m benchmarks.accelerator.transformers_batching WORKLOAD ATTENTION

The last line of their output is JSON.
"""
