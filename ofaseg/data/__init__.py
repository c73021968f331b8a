"""Shards, their rows, and the datasets over them."""

import cv2

# Data workers are the parallelism here: pictures are too small to share among threads, which would fight over the cores,
# and a pool of threads does not survive the fork that starts a worker.
cv2.setNumThreads(0)
