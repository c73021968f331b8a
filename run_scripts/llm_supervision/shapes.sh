#!/usr/bin/env bash
# LLM supervision on the drawn world: SimSeg checkpoints without subclasses and under every fusion rule, in one report. CPU, no download.
#   [CHECKPOINTS="a.pt b.pt c.pt"] [DATA=shards] [SUBCLASSES=names.json] run_scripts/llm_supervision/shapes.sh [--dry-run] [evaluate flags]
# CHECKPOINTS: of run_scripts/simseg/shapes.sh with different seeds; without any, one is trained (half an hour of a core).
#   RULES     fusion rules (default: all); SPLIT (default test)
#   REFINE    "none dense_crf" (default): once by the best class of each patch, once with the dense CRF
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
RULES="${RULES:-softmax mean superclass_mean max logsumexp}"
SUBCLASSES="${SUBCLASSES:-$ROOT/data_prep/subclasses/shapes.json}"
DATA="${DATA:-$OUT/shards}"
if [ -z "${CHECKPOINTS:-}" ]; then
  CHECKPOINTS="$OUT/simseg/checkpoint_last.pt"
  [ -e "$CHECKPOINTS" ] || run env OUT="$OUT/simseg" DATA="$DATA" "$ROOT/run_scripts/simseg/shapes.sh"
fi
RESULTS="$OUT"
measure() {  # measure CHECKPOINT FOLDER ROW FLAG...: unless that was measured before
  local checkpoint="$1"
  OUT="$RESULTS/$2/$3"
  shift 2
  [ -e "$OUT/scores.json" ] || scores evaluate "$checkpoint" "$DATA" --split "${SPLIT:-test}" --batch-size 20 --name "$@"
}
number=0
for checkpoint in $CHECKPOINTS; do
  number=$((number + 1))
  for refine in ${REFINE:-none dense_crf}; do
    measure "$checkpoint" "seed$number/$refine" plain --refine "$refine"
    for rule in $RULES; do
      measure "$checkpoint" "seed$number/$refine" "$rule" --refine "$refine" --subclasses "$SUBCLASSES" --fusion "$rule"
    done
  done
done
rows=()
for refine in ${REFINE:-none dense_crf}; do
  for row in plain $RULES; do rows+=(--result "$row, $refine=$RESULTS/seed*/$refine/$row"); done
done
run "$BIN/ofaseg" report "$RESULTS" --title "The drawn world with subclasses" "${rows[@]}"
