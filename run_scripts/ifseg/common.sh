# What the published IFSeg runs share (paper section 4.1): image-free, 2,000 updates of 16 mosaics. Sourced, never run.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

ifseg_train() {  # ifseg_train DATA FLAG...
  require BPE_DIR "the folder of OFA's encoder.json, vocab.bpe and dict.txt"
  require CHECKPOINT "the official ofa_base.pt (or an IFSeg checkpoint)"
  local gpus=$(( NGPU > 0 ? NGPU : ${NPROC:-1} ))
  if (( 16 % gpus )); then
    echo "$SCRIPT_NAME: the published batch of 16 cannot be shared by $gpus processes; set NGPU or NPROC to 1, 2, 4, 8 or 16" >&2
    exit 2
  fi
  local batch=$(( gpus <= 4 ? 4 : gpus <= 8 ? 2 : 1 ))
  train "$@" \
    --task seq2seq_segmentation --arch "${ARCH:-segofa_base}" --criterion seg_token_cross_entropy \
    --bpe-dir "$BPE_DIR" --pretrained "$CHECKPOINT" \
    --optimizer torch_adamw --weight-decay 0.1 --clip-norm 1.0 \
    --lr 5e-5 --lr-scheduler cosine_warmup_ratio --warmup-ratio 0 \
    --batch-size $batch --update-freq $(( 16 / (batch * gpus) )) \
    --epoch-size 1600 --max-epoch 20 --autocast "${AUTOCAST:-bf16}" \
    --batch-size-valid 1 --resnet-topk 3 --resnet-iters 25 --num-workers 2 \
    --keep-best-checkpoints 1 --keep-last-epochs 1 \
    --best-checkpoint-metric mIoU --maximize-best-checkpoint-metric --seed 1
}
