#!/usr/bin/env bash
# Train the embedded bundle from nothing, on CPU: about an hour and a half on two cores (see the card).
# Run it in the project's environment (. .venv/bin/activate). It can be interrupted and run again: training
# and captions go on from where they were, finished drawings are kept, the short stages start over.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-out/tiny}
run() { echo "== $*"; python -m "$@"; }

run recipes.tiny.data "$work/val" --clips 1000 --seed 772
run recipes.tiny.data "$work/held" --clips 3200 --seed 773
run recipes.tiny.data "$work/train" --clips 16000
run recipes.tiny.captioner "$work"      # Florence-2: frame to sentence
run recipes.tiny.embedder "$work"       # Qwen3-VL: see first, then answer under the policy
run recipes.tiny.states "$work"         # probe, domain guard, out-of-fold scores
run recipes.tiny.reasoner "$work"       # the adapter that continues S1's cache
run recipes.tiny.pack "$work" src/safelens/bundles/tiny
run recipes.tiny.check --videos "${@:2}"
