#!/usr/bin/env bash
# From raw text to a Cola model that writes, on one machine: bash launch/quickstart.sh [--input WHAT]
#
#   WHAT: stories (default: a corpus that the project writes itself), docstrings (the prose of this Python installation),
#         or a .txt, .jsonl(.gz, .zst) or .parquet file, or a folder of those.
#
# Everything lies under runs/NAME. Interrupted, the same command goes on where it was; what is complete is kept.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
input=stories
while [ $# -gt 0 ]; do
    case "$1" in
        --input) [ $# -ge 2 ] || { echo "error: --input needs a value" >&2; exit 2; }; input="$2"; shift 2 ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "error: $1: unknown argument; expected --input WHAT" >&2; exit 2 ;;
    esac
done
case "$input" in
    stories | docstrings) name="$input" ;;
    *)
        [ -e "$input" ] || { echo "error: --input $input: no such file or folder" >&2; exit 2; }
        input="$(realpath "$input")" name="$(basename "$input" | sed 's/\..*//')"
        case "$name" in '' | / | stories | docstrings) name="${name%/}-input" ;; esac
        ;;
esac
cd "$here"
began=$SECONDS
source launch/environment.sh
run="runs/$name"
mkdir -p "$run"
step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$1"; }

case "$name:$input" in
    stories:stories | docstrings:docstrings)
        step "corpus"
        [ -f "$run/corpus.jsonl" ] || "$python" tools/make_corpus.py --kind "$input" --out "$run/corpus.jsonl"
        input="$run/corpus.jsonl"
        ;;
esac
step "tokenizer"
[ -f "$run/tokenizer.model" ] ||
    "$python" tools/train_tokenizer.py --input "$input" --out "$run/tokenizer.model" --vocab_size 1024
step "records"
"$python" tools/prepare_data.py --input "$input" --tokenizer "$run/tokenizer.model" --out "$run/records" \
    --sequence_length 64 --workers "$(nproc)"
step "stage 1: text VAE"
"$python" -m colajax.train --config configs/cola_vae.py:quickstart --workdir "$run/vae" --config.records="$run/records"
step "stage 2: prior and VAE"
"$python" -m colajax.train --config configs/cola_joint.py:quickstart --workdir "$run/joint" \
    --config.records="$run/records" --config.init_from="$run/vae"
step "Hugging Face layout"
[ -d "$run/hf" ] || "$python" tools/export_hf.py --workdir "$run/joint" --out "$run/hf"
step "evaluation and samples"
"$python" tools/evaluate.py --workdir "$run/joint" --records "$run/records"
step "report of both runs"
"$python" tools/report.py "$run/vae" "$run/joint" --records "$run/records" --out "$run/report.html"
step "done; everything is in $run. Try next:"
prompt="$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["samples"][0][0])' "$run/joint/evaluation.json")"
echo "  $python tools/generate.py --workdir $run/joint --guidance 1 --temperature 0 --prompt $(printf '%q' "$prompt")"
