"""The parts of benchmarks/gpu.py; whatever touches the device is a process of its own.

python -m benchmarks.accelerator.probe DEVICE BUFFER_MIB MATRIX_SIZE
python -m benchmarks.accelerator.weir WORKLOAD DTYPE
python -m benchmarks.accelerator.transformers_batching WORKLOAD ATTENTION

Each prints one line of JSON last.
"""
