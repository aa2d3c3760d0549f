"""sentence-transformers in float32. Reads lists of texts from stdin, a JSON line each.

Answers each line with the seconds of `encode`, and the number of values of the vectors. Runs in an
environment of its libraries: `make sentence-transformers`.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Serve until stdin ends; the arguments are the model's folder and the number of threads."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = SentenceTransformer(folder, device="cpu")
    model.encode(["warm up"], show_progress_bar=False)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        began = time.perf_counter()
        vectors = model.encode(texts, batch_size=len(texts), show_progress_bar=False)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "vectors": vectors[:1].tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
