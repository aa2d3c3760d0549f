"""The decoder on a CPU with AVX-512: C for the arithmetic, Python for everything else."""
